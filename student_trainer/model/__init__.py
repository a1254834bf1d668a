"""HOSER: road and zone encoders, trip encoder, navigator; parameter names are upstream's."""
