"""What is wrong with a data set, found before training: `imgcls data report DATA`.

    open_source ─► DataSource ─ examine ─► facts of each image, what cannot be decoded
                                   ├─ find_pictures (CleanVision, ImageHash) ─► groups, leaks between splits
                                   └─ find_label_issues (cleanlab) ─► labels that a model does not believe

`imgcls data screen RUN` looks at training images through the network that learnt them (features, poison).

The arithmetic is CleanVision's and cleanlab's; this room feeds them any source and says what they found.
"""
