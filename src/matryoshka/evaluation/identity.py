"""What a coder is told from all others by: results and labels belong to one."""

import hashlib

from matryoshka.coder.coder import SparseCoder


def fingerprint(coder: SparseCoder) -> str:
    """sha256 of a coder's tensors: what labels belong to."""
    digest = hashlib.sha256()
    for name, tensor in sorted(coder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()
