"""The servers that TorchServe is compared with: one script each, as its documentation would have it written.

    NAME_app.py   started in an environment of its own, with the settings of `bench.peers.settings`
    NAME.txt      the packages of that environment, at exact versions; what .venv has, torch before all, is shared

How each is started and asked is a line in `bench.registry`. To add one: a script, a list of packages, a line. Each runs
one of three pipelines (`bench.peers.pipeline`): the documentation's, ours, or none.
"""
