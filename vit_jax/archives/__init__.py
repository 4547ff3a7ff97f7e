"""Safe reading and writing of .npz and other zip archives of unknown origin."""
