"""Files of whole arrays: NumPy's .npz, and folders of MNIST's kind of files."""
