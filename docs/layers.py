"""Draw the layers of the package for docs/architecture.md, as SVG for light and for dark pages.

python docs/layers.py
"""

from pathlib import Path

IMAGES = Path(__file__).parent / "images"
LAYERS = (
    (("command line", "cli, commands, checkpoints"), ("remedies", "short trials of them")),
    (("monitors", "when to probe, loggers, alerts"),),
    (("views", "tab, report, figures"), ("metrics", "over snapshots")),
    (("probe", "one measurement: a Snapshot"),),
    (("descent", "update, rates, forecast, transfer"),),
    (("model", "state, sites, derivatives, quiet context"),),
    (("estimators", "numbers with standard errors"),),
    (("operators", "linear maps and their algebra"),),
)
"""From top to bottom; those in one row do not know one another."""
WIDTH, HEIGHT, GAP = 640, 46, 8
COLORS = {
    "light": {"fill": "#eef3f8", "line": "#9db4c8", "ink": "#22272e", "faint": "#57606a"},
    "dark": {"fill": "#1d2630", "line": "#46607a", "ink": "#d4d8dd", "faint": "#9aa4af"},
}
STYLE = 'font-family="system-ui, sans-serif" text-anchor="middle"'


def main() -> None:
    """Write both."""
    for page, colors in COLORS.items():
        (IMAGES / f"layers_{page}.svg").write_text(drawn(colors))


def drawn(colors: dict[str, str]) -> str:
    """The picture.

    Args:
        colors: Of boxes and text.

    Returns:
        SVG.
    """
    total = len(LAYERS) * (HEIGHT + GAP)
    parts = []
    for row, layer in enumerate(LAYERS):
        width = (WIDTH - 46 - GAP * (len(layer) - 1)) / len(layer)
        for place, (name, what) in enumerate(layer):
            x, y = place * (width + GAP) + 1, row * (HEIGHT + GAP) + 1
            middle = x + width / 2
            parts += [
                f'<rect x="{x}" y="{y}" width="{width}" height="{HEIGHT}" rx="6" '
                f'fill="{colors["fill"]}" stroke="{colors["line"]}"/>',
                f'<text x="{middle}" y="{y + 19}" font-size="15" font-weight="600" '
                f'fill="{colors["ink"]}">{name}</text>',
                f'<text x="{middle}" y="{y + 37}" font-size="13" fill="{colors["faint"]}">'
                f"{what}</text>",
            ]
    x, tip = WIDTH - 28, total - GAP - 2
    parts += [
        f'<path d="M{x} 6 V{tip} M{x - 6} {tip - 9} L{x} {tip} L{x + 6} {tip - 9}" '
        f'fill="none" stroke="{colors["faint"]}" stroke-width="1.5"/>',
        f'<text x="{x + 13}" y="{total / 2}" font-size="13" fill="{colors["faint"]}" '
        f'transform="rotate(90 {x + 13} {total / 2})">imports</text>',
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total}" {STYLE}>'
    return "\n".join([head, *parts, "</svg>\n"])


if __name__ == "__main__":
    main()
