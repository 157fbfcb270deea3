"""Restores the pictures beside this script from Python, and tells how sure each is. Run it from the repository's root:

PYTHONPATH=. python examples/from_python.py
"""

from pathlib import Path

from restore import load_restorer
from util import images

restorer = load_restorer()
out = Path("examples_restored")
for path in sorted(Path(__file__).parent.glob("*.png")):
    prepared = restorer.prepare(images.read(path), char=path.stem)  # the name of each is the character that it shows
    (restored,) = restorer.restore([prepared])
    images.write_png(out / path.name, restored.picture(style="ink"))
    images.write_png(out / f"{path.stem}_sureness.png", restored.sureness())
    told = restored.numbers()
    print(f"{path.stem}: sureness {told['sureness']:.2f}, added {told['added']:.1%}, doubtful {told['doubtful']:.1%}")
