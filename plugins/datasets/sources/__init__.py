"""Image files and their classes: in a folder, a .zip, or a .tar, compressed or not."""
