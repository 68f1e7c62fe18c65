"""A plan as lines for the screen: what is known, what is a model, and what the model assumes."""

from collections.abc import Callable, Iterator, Sequence

from trainer.observe.wording import number
from trainer.planning.advice import Advice
from trainer.planning.hardware import GIB, PUBLISHED
from trainer.planning.plan import Plan, StagePlan
from trainer.planning.record import Prices
from trainer.sizes import assumed_backbones

_Cell = Callable[[StagePlan], str]


def lines(plan: Plan, advice: Sequence[Advice], prices: Prices) -> Iterator[str]:
    cluster = plan.asked.cluster
    gpu = cluster.gpu
    yield (
        f"{plan.recipe.name} on {cluster.ranks} GPUs: {cluster.nodes} x {cluster.per_node} {gpu.device} of "
        f"{gpu.memory / GIB:.1f} GiB, {cluster.network:,.0f} Gbit/s between nodes"
    )
    yield from assumed_backbones(plan.recipe)
    yield "Counted: parameters, states, kept activations, checkpoints, FLOPs, all of the assumed load."
    yield "Modelled: other memory, and all times. Nothing was measured on such a GPU."
    for title, cells in (
        ("parameters, millions (trained)", _parameters(plan)),
        ("a GPU's memory, GiB", _memory(plan)),
        ("the host's memory for a GPU, GiB", _host(plan)),
        ("a step", _step(plan)),
        ("a stage", _stage(plan, prices)),
    ):
        yield ""
        yield from _table(title, cells, plan.stages)
    yield ""
    yield from _whole(plan, prices)
    yield ""
    yield from _scaling(plan, prices)
    yield ""
    yield from _assumptions(plan)
    yield ""
    yield (
        "Suggestions, each planned like the above:" if advice else "Suggestions: none; no other setting pays"
    )
    yield from (f"  {a}" for a in advice)


def _parameters(plan: Plan) -> dict[str, _Cell]:
    def cell(module: str) -> _Cell:
        def of(stage: StagePlan) -> str:
            found = next((c for c in stage.shape.modules if c.module == module), None)
            return "-" if found is None else _counted(found.parameters, found.trainable)

        return of

    def total(stage: StagePlan) -> str:
        counted = stage.shape.modules
        return _counted(sum(c.parameters for c in counted), sum(c.trainable for c in counted))

    return {name: cell(name) for name in plan.recipe.model.modules} | {"all": total}


def _memory(plan: Plan) -> dict[str, _Cell]:
    def cell(part: str) -> _Cell:
        return lambda s: _gib(getattr(s.memory, part))

    parts = [n for n in vars(plan.stages[0].memory) if any(getattr(s.memory, n) for s in plan.stages)]
    return {
        "sharding": lambda s: f"ZeRO-{s.page.zero_optimization.stage}, {s.page.precision}",
        **{name.replace("_", " "): cell(name) for name in parts},
        "all": lambda s: _gib(s.memory.total),
        "margin": lambda s: _gib(s.margin) + ("" if s.margin >= 0 else " !!"),
        "rows as full as allowed": lambda s: (
            _gib(s.fullest.total) + ("" if s.fullest.total <= s.cluster.gpu.memory else " !!")
        ),
    }


def _host(plan: Plan) -> dict[str, _Cell]:
    names = dict.fromkeys(name for s in plan.stages for name in s.host)

    def cell(name: str) -> _Cell:
        return lambda s: _gib(s.host.get(name, 0))

    rows: dict[str, _Cell] = {name: cell(name) for name in names}
    rows["all"] = lambda s: _gib(sum(s.host.values()))
    if any(s.drive for s in plan.stages):
        rows["and the optimizer on the node's drive"] = lambda s: _gib(s.drive)
    return rows


def _step(plan: Plan) -> dict[str, _Cell]:
    def flops(part: str) -> _Cell:
        return lambda s: f"{getattr(s.work.flops, part) / 1e15:,.1f}"

    work = [n for n in vars(plan.stages[0].work.flops) if any(getattr(s.work.flops, n) for s in plan.stages)]
    return {
        "rows": lambda s: f"{s.work.rows:,}",
        "micro-batch x accumulation": lambda s: f"{s.stage.micro_batch} x {s.accumulation}",
        "positions": lambda s: f"{s.work.tokens:,}",
        "pictures": lambda s: f"{s.work.images:,}",
        **{f"PFLOP, {part.replace('_', ' ')}": flops(part) for part in work},
        "PFLOP, all": lambda s: f"{s.work.flops.total / 1e15:,.1f}",
        "PFLOP, done again": lambda s: f"{s.work.again.total / 1e15:,.1f}",
        "GB moved between GPUs": lambda s: _gb(s.traffic.gathered + s.traffic.near + s.traffic.reduced),
        "computes, s": lambda s: number(s.step.compute),
        "communicates, s": lambda s: number(s.step.communication),
        "  and waits for it, s": lambda s: number(s.step.exposed),
        "waits for the host, s": lambda s: number(s.step.host),
        "all, s": lambda s: number(s.step.total),
        "MFU": lambda s: f"{s.step.mfu:.1%}",
    }


def _stage(plan: Plan, prices: Prices) -> dict[str, _Cell]:
    cells: dict[str, _Cell] = {
        "steps": lambda s: f"{s.stage.steps:,}",
        "days": lambda s: number(s.days),
        "a checkpoint, GB": lambda s: _gb(s.checkpoint),
        "frozen weights, once, GB": lambda s: _gb(s.frozen),
        "checkpoints kept": lambda s: str(s.stage.keep_checkpoints),
        "disk, GB": lambda s: _gb(s.disk),
    }
    if prices.disk_gbps is not None:
        cells["writing one, s"] = lambda s: number(prices.write_s(s.checkpoint))
    return cells


def _whole(plan: Plan, prices: Prices) -> Iterator[str]:
    cost = prices.cost(plan.gpu_hours)
    yield (
        f"All stages: {number(plan.days)} days, {plan.gpu_hours:,.0f} GPU-hours"
        + (f", {cost:,.0f} at {prices.gpu_hour:g} a GPU-hour" if cost is not None else "")
        + f"; at most {_gb(plan.disk)} GB on disk"
    )
    fast, slow = (number(plan.days * times) for times in PUBLISHED)
    yield "  This models work that never stops. Two published runs took"
    quick, tardy = PUBLISHED
    yield f"  {quick:g} and {tardy:g} times what it says of them: {fast} to {slow} days at their pace"
    for stage in plan.stages:
        if stage.margin < 0:
            yield f"  DOES NOT FIT: stage '{stage.stage.name}' lacks {_gib(-stage.margin)} GiB on each GPU"


def _scaling(plan: Plan, prices: Prices) -> Iterator[str]:
    yield "all stages by GPUs, a mean step (a smaller micro-batch where the recipe's does not divide)"
    heads: tuple[str, ...] = ("GPUs", "step, s", "computes", "communicates", "waits", "days", "GPU-hours")
    heads += ("cost",) if prices.gpu_hour is not None else ()
    yield " ".join(f"{head:>12}" for head in heads)
    for row in plan.scaling:
        if row.refused:
            yield f"{row.ranks:12,} {row.refused}"
            continue
        cells = [number(x) for x in (row.step_s, row.compute_s, row.communication_s)]
        cells += [f"{row.waits:.1%}", number(row.days), f"{row.gpu_hours:,.0f}"]
        cost = prices.cost(row.gpu_hours)
        cells += [f"{cost:,.0f}"] if cost is not None else []
        notes = ["  <- does not fit"] if row.margin < 0 else []
        notes += ["  <- communicates for longer than it computes"] if row.ranks == plan.dominated_from else []
        yield " ".join(f"{cell:>12}" for cell in (f"{row.ranks:,}", *cells)) + "".join(notes)


def _assumptions(plan: Plan) -> Iterator[str]:
    cluster, assumed = plan.asked.cluster, plan.asked.assumed
    gpu, pictures = cluster.gpu, [s.pictures for s in plan.stages]
    rows, patches = _range([p.row for p in pictures]), _range([p.patches for p in pictures])
    latency, context = assumed.latency_s * 1e6, assumed.context / GIB
    attained = ", ".join(f"{part.replace('_', ' ')} {x:g}" for part, x in vars(assumed.attained).items())
    yield "assumed"
    yield f"  {rows} pictures a row (--images-per-row), each of {patches} patches (--patches-per-image);"
    yield "    rows are full, one document each, and all their text is a target"
    yield f"  the peak is {gpu.flops / 1e12:,g} TFLOP/s in bf16 (data sheet), of which is attained (--mfu):"
    yield f"    {attained}"
    yield f"  links: NVLink {gpu.nvlink:g} GB/s, a node's cards {cluster.network:,.0f} Gbit/s"
    yield f"    (--inter-node-gbps), {assumed.links:.0%} of each; {latency:g} us a collective for each"
    yield f"    doubling of the ranks; communication hides under {assumed.overlap:.0%} of the computation"
    yield f"  the host: {assumed.host_link:g} GB/s to a GPU, {assumed.host_memory:g} of its memory for each"
    yield f"  {context:g} GiB for CUDA and NCCL; {assumed.fragmentation:.0%} is lost between blocks"
    yield "  left out: late data, evaluation, restarts, the update on the GPU, compile, fused kernels"


def _table(title: str, cells: dict[str, _Cell], stages: Sequence[StagePlan]) -> Iterator[str]:
    columns = [[s.stage.name, *(cell(s) for cell in cells.values())] for s in stages]
    widths = [max(map(len, column)) for column in columns]
    first = max(34, *(len(name) + 2 for name in cells))
    for n, name in enumerate([title, *(f"  {name}" for name in cells)]):
        yield f"{name:{first}}" + "".join(f"  {c[n]:>{w}}" for c, w in zip(columns, widths, strict=True))


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _counted(parameters: int, trained: int) -> str:
    return f"{parameters / 1e6:,.1f} ({trained / 1e6:,.1f})" if trained else f"{parameters / 1e6:,.1f}"


def _gib(nbytes: int) -> str:
    return f"{nbytes / GIB:,.2f}"


def _gb(nbytes: float) -> str:
    return f"{nbytes / 1e9:,.2f}" if nbytes < 1e11 else f"{nbytes / 1e9:,.0f}"
