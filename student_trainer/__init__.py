"""The student: data preparation, HOSER, and its training against a remote teacher."""
