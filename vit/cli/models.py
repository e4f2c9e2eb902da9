"""`vit models [PATTERN]`."""

import fnmatch

from vit.errors import ConfigError, display_path
from vit.models.architecture import SIZES


def main(argv: list[str]) -> int:
    """Print the named sizes that match a pattern. Returns the exit code."""
    if "-h" in argv or "--help" in argv:
        print("usage: vit models [PATTERN]\n\nThe named sizes: width, blocks, heads, and parameters of the blocks.")
        return 0
    if len(argv) > 1:
        raise ConfigError(f"vit models takes one PATTERN, got {len(argv)}: {', '.join(map(display_path, argv))}")
    pattern = argv[0] if argv else "*"
    names = [name for name in SIZES if fnmatch.fnmatch(name.lower(), pattern.lower())]
    if not names:
        raise ConfigError(f"no size matches {display_path(pattern)}; there are {', '.join(SIZES)}")
    print(f"{'size':8} {'dim':>6} {'depth':>6} {'heads':>6} {'hidden':>7} {'in blocks':>11}")
    for name in names:
        size = SIZES[name]
        # q, k, v, output projection, two MLP matrices with their biases, two norms
        block = 4 * size.dim * (size.dim + 1) + 2 * size.dim * size.hidden + size.hidden + 5 * size.dim
        millions = size.depth * block / 1e6
        print(f"{name:8} {size.dim:6} {size.depth:6} {size.heads:6} {size.hidden:7} {millions:9.1f} M")
    print("\nA model's name is a size and a patch: --model.name S/16")
    return 0
