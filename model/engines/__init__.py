"""Engines: the ways to run one network. Each takes uint8 pixels and answers float32 logits; normalisation is inside.

    uint8 (B, C, H, W) ─► Engine.run ─► float32 logits (B, classes)

`eager` is the network as it was trained, and the reference. The others are files in an archive's `engines/` folder that
were compared with it on real images when the archive was built; `engines.json` records how near they came. To add one:
a file here with a class, its kinds in `kinds.KINDS`, a line in `choose.load_engine`, and in `imgcls.archive.export`
what makes its file.

A runtime is imported when its engine is loaded and not before, so a worker that runs OpenVINO imports no torch.
"""
