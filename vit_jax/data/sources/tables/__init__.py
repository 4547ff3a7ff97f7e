"""Tables of images: reading them, whatever their format and columns."""
