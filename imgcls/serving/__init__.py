"""TorchServe as a process: start it, know when it is ready, scale, look, stop. It never imports torch.

server is the door; the other modules hold one idea each. The command line is imgcls.cli.serving and imgcls.cli.doctor.
"""
