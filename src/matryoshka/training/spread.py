"""Which process of a world trains which coders: each coder is one process' own, and all learn from the same batches."""

from collections.abc import Sequence

from matryoshka.errors import MatryoshkaError
from matryoshka.training.plan import Plan


def cost(plan: Plan) -> int:
    """What a step of a coder takes, to be held against others': its weights, which a product and the optimiser go
    through."""
    return plan.coder.d_sae * (plan.coder.d_in + plan.coder.d_out)


def spread(plans: Sequence[Plan], processes: int) -> list[list[Plan]]:
    """The coders of each process, in their order, so that no process has much more to do than others: the dearest
    first, each to whoever has least (Graham 1969: at most 4/3 of the best there is).

    Raises MatryoshkaError where there are more processes than coders.
    """
    if processes > len(plans):
        raise MatryoshkaError(
            f"{processes} processes for {len(plans)} {'coder' if len(plans) == 1 else 'coders'}: a coder is trained by"
            f" one of them, so start at most {len(plans)}"
        )
    loads, owners = [0] * processes, [0] * len(plans)
    for number in sorted(range(len(plans)), key=lambda i: -cost(plans[i])):
        owners[number] = owner = loads.index(min(loads))
        loads[owner] += cost(plans[number])
    return [[plan for plan, owner in zip(plans, owners, strict=True) if owner == rank] for rank in range(processes)]
