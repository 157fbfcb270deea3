"""The handwriting set: fonts, the packed file, the split, damage and pairs."""
