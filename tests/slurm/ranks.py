"""What a job over several nodes does, with `echo` for vLLM: its nodes, and a step of each rank."""

import os
import socket
import subprocess

from moecap.engines.vllm.multinode import allocation, step_command

where = allocation()
print(f"batch host {os.environ.get('SLURMD_NODENAME', socket.gethostname())} of {len(where.nodes)}")
for rank in range(len(where.nodes)):
    echo = f"echo rank {rank} on $SLURMD_NODENAME with GPUs $CUDA_VISIBLE_DEVICES"
    step = subprocess.run(step_command(where, rank, ["sh", "-c", echo]), capture_output=True, text=True, check=True)
    print(step.stdout.strip())
