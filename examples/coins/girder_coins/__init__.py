"""Count the coins, or other blobs, in pictures kept in Girder."""
