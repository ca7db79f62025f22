"""The command `imgcls`: one file a group of commands, assembled in main.

Commands read options and print results; the work, and every error, is in the rooms that they call.
"""
