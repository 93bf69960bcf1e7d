"""showtell: from a folder of captioned photographs to a trained, measured, shareable captioner."""
