"""Block diagrams of networks as inline SVG: one box a block, its share of the latency as a bar below.

Colours come from the page's style sheet by class, so that they follow its theme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from itertools import pairwise

from latbench.network import Block, Network

BOX_WIDTH, BOX_HEIGHT, GAP, ROW_GAP, PER_ROW = 74, 66, 12, 18, 10
#: A network that branches, or has more blocks than this, is drawn by the choices of its positions instead.
MOST_BLOCKS = 48
#: Characters of a line in a box; those that are longer are in the text for hovering.
_LONGEST = 11
#: Names that are too long for a box.
_SHORT = {"global_avg_pool": "avg pool", "global_max_pool": "max pool"}


@dataclass(frozen=True)
class Box:
    """One box: lines of text, a style class for its strip, milliseconds or None, and a text for hovering."""

    lines: tuple[str, ...]
    style: str
    latency_ms: float | None
    title: str


def diagram(network: Network | None, block_ms: Mapping[str, float], choices: Sequence[str], name: str) -> str:
    """SVG of a network's blocks, or of its choices where these say more."""
    if network is not None and 0 < len(network.blocks) <= MOST_BLOCKS and _is_chain(network):
        boxes = [block_box(b, network, block_ms.get(b.name)) for b in network.blocks]
    else:
        boxes = [Box((f"position {i}", *_wrap(c)), "k0", None, c) for i, c in enumerate(choices)]
        return svg(boxes, name, wires=False)
    return svg(boxes, name)


def block_box(block: Block, network: Network, latency_ms: float | None) -> Box:
    """The box of a block: kernel, expansion, channels, spatial size and stride, as far as it has them."""
    a, op = block.op.attributes, block.op
    shape = op.inputs[0].shape if op.inputs else ()
    out = network.tensors[block.outputs[0]].shape
    kernel = a.get("kernel")
    k = max(kernel) if isinstance(kernel, tuple) else kernel
    mid = a.get("mid")
    expand = f"e{mid / shape[1]:.3g}" if isinstance(mid, int) and len(shape) > 1 and mid != shape[1] else ""
    kind = _SHORT.get(op.kind, op.kind.replace("_", " "))
    kind = kind if len(kind) <= _LONGEST else f"{kind[: _LONGEST - 1]}…"
    first = f"{k}×{k}" if isinstance(k, int) else kind
    head = " ".join(t for t in (first, expand, "SE" if a.get("se") else "") if t)
    kind = kind if head != kind else ""
    channels = f"{shape[1]}→{out[1]}" if len(shape) > 1 and len(out) > 1 else ""
    size = f"{shape[2]}²" if len(shape) == 4 and shape[2] == shape[3] and shape[2] > 1 else ""
    down = f"/{shape[2] // out[2]}" if len(shape) == len(out) == 4 and 0 < out[2] < shape[2] else ""
    ms = "" if latency_ms is None else f" · {latency_ms:.4f} ms"
    title = f"{block.name}: {op.label}{ms}"
    style = f"k{k}" if k in (1, 3, 5, 7) else "k0"
    lines = tuple(t for t in (head, kind, channels, f"{size} {down}".strip()) if t)
    return Box(lines[:3] if len(lines) > 3 else lines, style, latency_ms, title + (f" · {size}{down}" if size else ""))


def _is_chain(network: Network) -> bool:
    return all(b.inputs == a.outputs for a, b in pairwise(network.blocks))


def svg(boxes: Sequence[Box], name: str, *, wires: bool = True) -> str:
    """Boxes in reading order, ``PER_ROW`` in a row; ``wires`` between those that follow each other."""
    rows = max(1, -(-len(boxes) // PER_ROW))
    columns = min(PER_ROW, max(1, len(boxes)))
    width, height = columns * (BOX_WIDTH + GAP) - GAP + 2, rows * (BOX_HEIGHT + ROW_GAP) - ROW_GAP + 2
    most = max((b.latency_ms or 0.0 for b in boxes), default=0.0)
    parts = [
        f'<svg class="diagram" viewBox="-1 -1 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escape(name)}">'
    ]
    for i, box in enumerate(boxes):
        x, y = (i % PER_ROW) * (BOX_WIDTH + GAP), (i // PER_ROW) * (BOX_HEIGHT + ROW_GAP)
        if wires and i % PER_ROW:
            parts.append(f'<line class="wire" x1="{x - GAP}" x2="{x}" y1="{y + 28}" y2="{y + 28}"/>')
        parts.append(_box(box, x, y, most))
    return "".join([*parts, "</svg>"])


def standalone(drawn: str) -> str:
    """A diagram as a file of its own: it brings along what it needs of the page's style sheet, both themes."""
    sheet = (files("latbench.report") / "style.css").read_text("utf-8")
    colours = sheet[: sheet.index("* {")]
    rules = "\n".join(line for line in sheet.splitlines() if line.startswith("svg.diagram"))
    font = 'svg.diagram { font-family: system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }'
    start = drawn.index(">") + 1
    head = drawn[: start - 1] + ' xmlns="http://www.w3.org/2000/svg">'
    return f"{head}<style>{colours}{font}\n{rules}</style>{drawn[start:]}"


def _box(box: Box, x: int, y: int, most: float) -> str:
    text = "".join(
        f'<text class="{"head" if i == 0 else "line"}" x="{x + BOX_WIDTH / 2}" y="{y + 20 + 14 * i}">{escape(t)}</text>'
        for i, t in enumerate(box.lines)
    )
    bar = ""
    if box.latency_ms is not None and most > 0:
        share = max(0.0, box.latency_ms / most)
        bar = (
            f'<rect class="track" x="{x}" y="{y + 60}" width="{BOX_WIDTH}" height="5" rx="2"/>'
            f'<rect class="share" x="{x}" y="{y + 60}" width="{BOX_WIDTH * share:.1f}" height="5" rx="2"/>'
        )
    return (
        f"<g><title>{escape(box.title)}</title>"
        f'<rect class="box" x="{x}" y="{y}" width="{BOX_WIDTH}" height="56" rx="5"/>'
        f'<rect class="strip {box.style}" x="{x + 6}" y="{y + 3}" width="{BOX_WIDTH - 12}" height="3" rx="1.5"/>'
        f"{text}{bar}</g>"
    )


def _wrap(text: str, most: int = 11) -> tuple[str, ...]:
    """At most two lines of about ``most`` characters, broken at spaces or underscores."""
    if len(text) <= most:
        return (text,)
    cut = max(text.rfind(" ", 0, most + 1), text.rfind("_", 0, most + 1))
    if cut <= 0:
        return (text[:most],)
    return text[: cut + 1].strip(), text[cut + 1 :][:most]
