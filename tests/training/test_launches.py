"""How many launches a GPU's step is made of: where a coder is small, each costs more than what it does."""

import pytest
from interpreted import DEVICE, fast, interpret
from small_trainee import batch, make
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from matryoshka.coder import kernels

if fast is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from matryoshka.coder.kernels.triton import launch

NO_LAUNCH = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}


class Launches(TorchDispatchMode):
    """Torch's operations but for views and bare memory, and Triton's kernels. Views that a device makes are none."""

    def __init__(self, patch):
        super().__init__()
        self.names, self._run = [], launch.run
        patch.setattr(launch, "run", self.run)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if not func.is_view and name not in NO_LAUNCH:
            self.names.append(name)
        return func(*args, **(kwargs or {}))

    def run(self, kernel, grid, *args, **constants):
        self.names.append(kernel.fn.__name__)
        with _disable_current_modes():
            self._run(kernel, grid, *args, **constants)


@pytest.mark.parametrize(("activation", "most", "rows"), [("batchtopk", 65, 64), ("topk", 56, 16)])
def test_a_step_is_few_launches(activation, most, rows, monkeypatch):
    """Two of them fill in learning rate and step, which lie on a GPU where there is one."""
    interpret(monkeypatch)
    with kernels.using(fast):
        trainee = make(activation, DEVICE, select="bfloat16")
        trainee.graphs = None
        data = [batch(step, rows, DEVICE) for step in range(2)]
        trainee.step(data[0], 0, measure=False)
        launches = Launches(monkeypatch)
        with launches:
            trainee.step(data[1], 1, measure=False)
    assert len(launches.names) <= most, sorted(launches.names)
