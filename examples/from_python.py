"""Restores the pictures in this folder from Python and prints how far each can be trusted. Run it from the repository's root:

PYTHONPATH=. python examples/from_python.py
"""

from pathlib import Path

from restoration.pipeline import load_restorer
from util import images

restorer = load_restorer()
output_dir = Path("examples_restored")
for path in sorted(Path(__file__).parent.glob("*.png")):
    prepared = restorer.prepare(images.read(path), char=path.stem)  # each file is named by its character
    (restored,) = restorer.restore([prepared])
    images.write_png(output_dir / path.name, restored.picture(style="ink"))
    images.write_png(output_dir / f"{path.stem}_confidence.png", restored.confidence())
    numbers = restored.numbers()
    print(f"{path.stem}: confidence {numbers['confidence']:.2f}, added {numbers['added']:.1%}, doubtful {numbers['doubtful']:.1%}")
