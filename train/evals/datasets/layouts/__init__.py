"""One file a layout: which images a folder holds, and which files say what of them."""
