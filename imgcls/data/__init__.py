"""Labelled images: where they come from, how they are split, and how they become pixels.

    text ─ open_source ─► DataSource ─ check_source ─► warnings
                              └─ splits["train"] ─ load_pixels ─► PixelSet

train.py and imgcls.evaluation call this room; serving never does. Nothing here changes an image: shard_writer
copies their bytes. Every image is decoded by model.images.decode_image, as in serving.
"""
