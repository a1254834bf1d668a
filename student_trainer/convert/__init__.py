"""Networks and trips of other formats -> HOSER's, which `prepare` reads."""
