"""Two nodes, as two network namespaces with a cable between them, train what one process trains. Needs root and ip."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

PROJECT = Path(__file__).parents[2]
OPTIONS = [
    "--data",
    "digits",
    "--epochs",
    "2",
    "--batch-size",
    "64",
    "--lr",
    "0.05",
    "--device",
    "cpu",
    "--threads",
    "1",
]
ADDRESSES = ("10.213.47.1", "10.213.47.2")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def nodes() -> Iterator[tuple[str, str]]:
    """The names of two namespaces, whose interface net0 has the addresses."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need root and the command ip")
    names = (f"node-{os.getpid()}-a", f"node-{os.getpid()}-b")
    with contextlib.ExitStack() as stack:
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as err:
                pytest.skip(f"no network namespace can be made here: {err.stderr.decode().strip()}")
            stack.callback(ip, "netns", "del", name)
        ip("-n", names[0], "link", "add", "net0", "type", "veth", "peer", "name", "net0", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", "net0")
            ip("-n", name, "link", "set", "net0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names


def test_two_nodes_train_what_one_process_trains(tmp_path, nodes):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "net0"}
    train = [PROJECT / "train.py", *OPTIONS, "--out"]
    subprocess.run([sys.executable, *train, tmp_path / "one"], check=True, capture_output=True, env=environment)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    launch += [f"--master-addr={ADDRESSES[0]}", "--master-port=29400"]
    launch += [f"--log-dir={tmp_path / 'torchrun'}"]  # else a folder in /tmp stays
    processes = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, *launch, f"--node-rank={rank}", *train, tmp_path / "two"],
            cwd=PROJECT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, name in enumerate(nodes)
    ]
    texts = [process.communicate(timeout=250)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(texts)
    assert sum("on 2 x cpu" in text for text in texts) == 1
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-4
