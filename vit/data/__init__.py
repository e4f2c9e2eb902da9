"""Files to batches: listing, decoding, augmentation and loading of pictures."""
