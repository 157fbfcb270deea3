"""A page in the browser that restores pictures of degraded characters, in English or Chinese, as the browser is set.

    python app.py
    python app.py --port 8000 --checkpoint runs/mine/best.pth

The page is reachable from this computer only. The server opens no connections, and the browser may not load anything from other
servers. Pictures are deleted after an hour and when the server stops.
"""

import argparse
import contextlib
import html
import os
import socket
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI
from PIL import Image

import app_pages
from restoration import confidence
from restoration.drawing import MEAN, Drawing
from restoration.pipeline import CERTAIN, POLARITIES, STYLES, WEIGHTS, Restored, Restorer, load_restorer
from restoration.reading import MOST, Reader, load_reader
from util import images, script
from util.settings import number
from util.squares import Box

MEGABYTES = 50  # maximum size of a picture file
HYPOTHESES = 3  # drawings of a single picture
SHOWN = 1024  # maximum edge in the page, in pixels; downloads have the full size

WORDS = {  # gradio uses "image", "slider" and the like itself
    "about": (
        "Restores pictures of damaged Chinese characters, one or several. Your pictures stay on this page's own server.",
        "修复残损汉字的图片，可一张，也可多张。图片只在本页的服务器上处理，不会发往别处。",
    ),
    "pictures": ("Pictures", "图片"),
    "char": ("Character (optional)", "汉字（可不填）"),
    "char_info": ("If you know it, its standard glyph guides the restoration.", "若知道是哪个字，可用其标准字形引导修复。"),
    "polarity": ("Strokes in the picture", "图中笔画"),
    "auto": ("detect", "自动判断"),
    "bright": ("bright", "亮"),
    "dark": ("dark", "暗"),
    "style": ("Restored picture", "修复结果"),
    "same": ("same as the input", "与原图一致"),
    "ink": ("ink: dark on light", "墨迹：浅底深字"),
    "rubbing": ("rubbing: light on dark", "拓片：深底浅字"),
    "restore": ("Restore", "修复"),
    "hint": ("The restored pictures appear here.", "修复的图片在此显示。"),
    "pair": ("Degraded | restored", "残损 | 修复"),
    "changes": ("What changed", "改动"),
    "readings": ("What the character could be; choose one to restore it as this character", "可能是什么字；点选其一，即按该字修复"),
    "hypotheses": ("What could have been written, the likeliest first", "可能的写法，最可能者在前"),
    "sheets": ("Degraded | restored | what changed", "残损 | 修复 | 改动"),
    "download": ("Download", "下载"),
    "kept": ("kept", "保留"),
    "added": ("added", "补上"),
    "removed": ("removed", "去除"),
    "doubtful": ("doubtful", "存疑"),
    "summary": ("Confidence {:.2f}, {} strokes, guide: {}", "置信度 {:.2f}，笔画{}，引导字：{}"),
    "place": ("Where the character is", "汉字的位置"),
    "place_info": (
        "Drag the frame, or its corners, if it misses the character. By keyboard: arrow keys, + and −.",
        "若方框不准，可拖动方框或四角；也可用方向键及 +、− 键。",
    ),
    "certain": ("Strokes {}: certain to {:.0%}.", "笔画{}，把握 {:.0%}。"),
    "in_doubt": ("Strokes {}: in doubt ({:.0%}), please check.", "笔画{}，把握仅 {:.0%}，请核对。"),
    "chosen": ("Strokes {}, as you chose.", "笔画{}，由您选定。"),
    "turned": ("Turned by {:g}°.", "倾斜 {:g}°。"),
    "flip": ("Strokes are {}", "笔画应为{}"),
    "no_guide": ("none", "无"),
    "no_picture": ("Choose a picture first.", "请先选择图片。"),
    "one_character": ("Enter one character at most, not “{}”.", "最多填一个字，而不是“{}”。"),
    "no_glyph": ("No standard glyph for {}: restored without a guide.", "没有“{}”的标准字形，未作引导。"),
    "no_fit": ("{} does not fit what survives in {}: restored without a guide.", "“{}”与 {} 的残存笔画不符，未作引导。"),
    "missing": ("{}: no longer on the server; choose it again", "{}：已不在服务器上，请重新选择"),
    "too_large": ("{}: larger than {} MB", "{}：超过 {} MB"),
    "too_many_pixels": ("{}: more than {} million pixels; make it smaller first", "{}：超过 {}00 万像素，请先缩小"),
    "corrupt": ("{}: corrupt or not a picture", "{}：文件损坏，或不是图片"),
    "common.upload": ("Add", "添加"),  # gradio has the name but no text for it
    "done": ("Restored: {} of {}.", "已修复 {} 张，共 {} 张。"),
    "characters": ("Characters", "单字"),
    "pages": ("Whole pages", "整页"),
    **app_pages.WORDS,
}
TEXTS = {language: {name: words[i] for name, words in WORDS.items()} for i, language in enumerate(("en", "zh"))}

CSS = """
.parts {display: flex; flex-wrap: wrap; gap: .3em 1.2em; margin-bottom: .4em}
.parts i {display: inline-block; width: .9em; height: .9em; margin-right: .4em; vertical-align: -.1em; outline: 1px solid #8886}
#changes img {width: 100%; height: 100%; object-fit: contain}
#sheets .thumbnail-lg {aspect-ratio: 3}
"""
# The place of the character over the degraded picture, on a square; see `place_of` for `value`. Lengths are in pixels.
PLACE = """${value ? `<div class="stage"><img src="${value.src}" alt="" draggable="false" style="
left: ${100 * value.margins[0] / value.stage}%; top: ${100 * value.margins[1] / value.stage}%;
width: ${100 * value.size[0] / value.stage}%">
<div class="box" tabindex="0" role="application" aria-label="${value.label}. ${value.info}" style="
left: ${100 * (value.margins[0] + value.box[0]) / value.stage}%; top: ${100 * (value.margins[1] + value.box[1]) / value.stage}%;
width: ${100 * value.box[2] / value.stage}%; transform: rotate(${value.angle}deg)">
<i data-corner="0"></i><i data-corner="1"></i><i data-corner="2"></i><i data-corner="3"></i></div></div><p>${value.info}</p>
<p class="polarity">${value.text} <button type="button" class="flip">${value.flip}</button></p>` : ''}"""
PLACE_CSS = """
.stage {position: relative; overflow: hidden; aspect-ratio: 1; width: min(420px, 100%); touch-action: none; user-select: none}
.stage img {position: absolute; max-width: none}
.box {position: absolute; aspect-ratio: 1; box-sizing: border-box; border: 2px solid #e8590c; cursor: move;
  box-shadow: 0 0 0 1px #fff8, 0 0 0 4000px #0004}
.box:focus-visible {outline: 3px solid #1c7ed6}
.box i {position: absolute; width: 22px; height: 22px; background: #e8590c; opacity: .8; cursor: nwse-resize}
.box i[data-corner="1"], .box i[data-corner="3"] {right: 0} .box i[data-corner="2"], .box i[data-corner="3"] {bottom: 0}
.box i[data-corner="1"], .box i[data-corner="2"] {cursor: nesw-resize}
.flip {border: 1px solid currentColor; border-radius: 4px; padding: .1em .6em; margin-left: .6em; cursor: pointer}
"""
PLACE_JS = """
const SMALLEST = 8;
let box, drag = null, timer;
const show = () => {
  const style = element.querySelector('.box').style, {size: [width, height], margins: [across, down], stage} = props.value;
  box = [Math.min(Math.max(box[0], 1 - box[2]), width - 1), Math.min(Math.max(box[1], 1 - box[2]), height - 1), box[2]];
  const shares = [across + box[0], down + box[1], box[2]].map(length => `${100 * length / stage}%`);
  [style.left, style.top, style.width] = shares;
};
const submit = changes => {props.value = {...props.value, ...changes}; setTimeout(() => trigger('submit'))};
const submitBox = () => submit({box: box.map(Math.round), moved: true});
const point = event => {
  const stage = element.querySelector('.stage').getBoundingClientRect(), scale = props.value.stage / stage.width;
  return [(event.clientX - stage.left) * scale, (event.clientY - stage.top) * scale];  // with the margins
};
element.addEventListener('pointerdown', event => {
  if (!event.target.closest('.box')) return;
  event.preventDefault();
  event.target.closest('.box').focus({preventScroll: true});
  event.target.setPointerCapture(event.pointerId);
  clearTimeout(timer);
  box = [...props.value.box];
  drag = {start: point(event), box: [...box], corner: event.target.dataset.corner};
});
element.addEventListener('pointermove', event => {
  if (!drag) return;
  let [x, y] = point(event);
  const [left, top, edge] = drag.box;
  if (drag.corner === undefined) {
    box = [left + x - drag.start[0], top + y - drag.start[1], edge];
  } else {  // the opposite corner keeps its place
    [x, y] = [x - props.value.margins[0], y - props.value.margins[1]];
    const right = drag.corner % 2, lower = drag.corner > 1;
    const fixed = [right ? left : left + edge, lower ? top : top + edge];
    const size = Math.max(SMALLEST, (x - fixed[0]) * (right ? 1 : -1), (y - fixed[1]) * (lower ? 1 : -1));
    box = [right ? fixed[0] : fixed[0] - size, lower ? fixed[1] : fixed[1] - size, size];
  }
  show();
});
for (const end of ['pointerup', 'pointercancel']) {
  element.addEventListener(end, () => {
    const moved = drag && box.some((value, i) => Math.round(value) !== drag.box[i]);
    drag = null;
    if (moved) submitBox();
  });
}
element.addEventListener('keydown', event => {
  if (!event.target.matches('.box')) return;
  const key = {ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0],
    '+': [-.5, -.5, 1], '=': [-.5, -.5, 1], '-': [.5, .5, -1]}[event.key];
  if (!key) return;
  event.preventDefault();
  if (!timer) box = [...props.value.box];
  const step = Math.max(2, Math.round(props.value.box[2] / 50));
  if (box[2] + step * key[2] >= SMALLEST) box = box.map((value, i) => value + step * key[i]);
  show();
  clearTimeout(timer);
  timer = setTimeout(() => {timer = 0; submitBox()}, 700);
});
element.addEventListener('click', event => {
  if (event.target.matches('.flip')) submit({polarity: props.value.other});
});
"""
# The browser selects Chinese, Japanese or Korean glyphs by the language of the page.
HEAD = "<script>document.documentElement.lang = navigator.language</script>"
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
OUTGOING = {f"socket.{call}" for call in ("connect", "getaddrinfo", "gethostbyname", "gethostbyaddr", "sendto", "sendmsg")}


# --- restoration ----------------------------------------------------------------------------------------------------------


def restore_each(
    restorer: Restorer, paths: list[Path], char: str, polarity: str, box: Box | None, texts: dict[str, str]
) -> Iterator[Restored | str]:
    """Yields each upload restored, or the line of its error. Holds one picture at a time in memory."""
    for path in paths:
        picture = read(path, texts)
        if isinstance(picture, str):
            yield picture
        else:
            try:
                prepared = restorer.prepare(picture, char, polarity, box)
            except ValueError:  # such as values that are not finite
                yield texts["corrupt"].format(path.name)
                continue
            yield restorer.restore([prepared], Drawing(hypotheses=HYPOTHESES if len(paths) == 1 else 1))[0]


def read(path: Path, texts: dict[str, str]) -> Image.Image | str:
    """The picture of an upload, or the line of its error."""
    try:
        if path.stat().st_size > MEGABYTES << 20:
            return texts["too_large"].format(path.name, MEGABYTES)
        return images.read(path)
    except FileNotFoundError:
        return texts["missing"].format(path.name)
    except (OSError, ValueError) as error:
        text = texts["too_many_pixels" if isinstance(error.__context__, Image.DecompressionBombError) else "corrupt"]
        return text.format(path.name, Image.MAX_IMAGE_PIXELS // 1_000_000)


def texts_for(request: gr.Request) -> dict[str, str]:
    """The texts in the language of the browser, chosen like gradio's labels, which have no other Chinese locale."""
    chinese = request.headers.get("accept-language", "").lower().startswith(("zh-cn", "zh-tw"))
    return TEXTS["zh" if chinese else "en"]


def output_names(paths: list[Path]) -> list[str]:
    """`<stem>_restored.png` for each; the second with the same stem is `<stem>_restored_2.png`."""
    count: Counter[str] = Counter()
    names = []
    for path in paths:
        stem = path.stem.casefold()  # some file systems ignore case
        count[stem] += 1
        names.append(f"{path.stem}_restored{f'_{count[stem]}' if count[stem] > 1 else ''}.png")
    return names


def pack(path: Path, pictures: list[Path]) -> Path:
    """Moves pictures into a zip file without compressing them again."""
    with zipfile.ZipFile(path, "w") as archive:
        for picture in pictures:
            archive.write(picture, picture.name)
            picture.unlink()
    return path


def preview(picture: Image.Image) -> Image.Image:
    """A copy of the picture, at most SHOWN pixels wide and high."""
    return images.small_copy(picture, SHOWN, SHOWN)


def legend(texts: dict[str, str], shares: dict[str, float] | None = None) -> str:
    """HTML: the colours of the parts, with the share of each if given."""
    parts = (
        f'<span><i style="background: rgb{colour}"></i>{texts[name]}{f" {shares[name]:.0%}" if shares else ""}</span>'
        for name, colour in confidence.COLOURS.items()
    )
    return f'<div class="parts">{"".join(parts)}</div>'


def summary(restored: Restored, texts: dict[str, str]) -> str:
    """HTML: the legend with shares, confidence, polarity and guide."""
    numbers = restored.numbers()
    guide = html.escape(numbers["guide"] or texts["no_guide"])
    return legend(texts, numbers) + texts["summary"].format(numbers["confidence"], texts[numbers["polarity"]], guide)


def place_of(restored: Restored, polarity: str, moved: bool, texts: dict[str, str]) -> dict:
    """The value of PLACE: the degraded picture, the box (left, top, edge) in its pixels, and polarity and rotation in words.

    `polarity` and `moved`: what the restoration was asked for, and whether with a box; the page sends them again.
    """
    prepared = restored.prepared
    top, left, edge, angle = prepared.box
    stage = 1.1 * max(prepared.shown.size)
    found, other = prepared.polarity, next(name for name in POLARITIES if name != prepared.polarity)
    state = "chosen" if polarity != "auto" else "certain" if prepared.certainty >= CERTAIN else "in_doubt"
    text = texts[state].format(texts[found], prepared.certainty)
    return {
        "src": app_pages.data_url(prepared.shown, SHOWN),
        "size": prepared.shown.size,
        "stage": stage,
        "margins": [(stage - length) / 2 for length in prepared.shown.size],
        "box": [left, top, edge],
        "angle": angle,
        "polarity": polarity,
        "other": other,
        "moved": moved,
        "label": texts["place"],
        "info": texts["place_info"],
        "text": text + (f" {texts['turned'].format(angle)}" if angle else ""),
        "flip": texts["flip"].format(texts[other]),
    }


def polarity_in(place: dict) -> str:
    """The polarity that was chosen in the page, or "auto"."""
    return place["polarity"] if place["polarity"] in POLARITIES else "auto"


def box_in(place: dict) -> Box | None:
    """The box that was moved in the page, or None. Raises ValueError for what is no box."""
    if not place.get("moved"):
        return None
    left, top, edge = map(int, place["box"])
    if not 0 < edge < 1 << 16 or max(abs(left), abs(top)) >= 1 << 16:
        raise ValueError(f"no box in a picture: {place['box']}")
    return Box(top, left, edge)


# --- the page -----------------------------------------------------------------------------------------------------------


def make_page(restorer: Restorer, folder: str, reader: Reader | None = None) -> gr.Blocks:
    """The page. Downloads are written to `folder`. reader: says what characters could be."""
    words = gr.I18n(**TEXTS)

    def show(lines: list[str], **values: object) -> list[dict]:
        """Shows the lines, and the components of `results` that have a value."""
        notes = "".join(f"<div>{html.escape(line)}</div>" for line in lines)
        return [gr.update(value=notes), *(gr.update(value=values.get(name), visible=name in values) for name in results)]

    def restore_again(files: list[str] | None, char: str | None, place: dict, style: str, request: gr.Request) -> list[dict]:
        return restore(files, char, polarity_in(place), style, request, box_in(place))

    def read_picture(files: list[str] | None, char: str | None, place: dict | None, style: str, request: gr.Request) -> dict:
        """Shows the readings of one picture whose character is not known."""
        picture = read(Path(files[0]), texts_for(request)) if files and len(files) == 1 and place and not char else None
        if not isinstance(picture, Image.Image):
            return gr.update(value=None, visible=False)
        restored = restorer.restore([restorer.prepare(picture, None, polarity_in(place), box_in(place))], MEAN)
        [readings], style = reader.under_each(restored, reader.read(restored)), style if style in STYLES else None
        cards = [(preview(one.restored.picture(style)), f"{one.char} {one.probability:.0%}") for one in readings]
        return gr.update(value=cards, visible=True, selected_index=None)

    def restore_as(files: list[str] | None, place: dict, style: str, event: gr.SelectData, request: gr.Request) -> list:
        char = event.value["caption"][:1]
        return [char, *restore_again(files, char, place, style, request)]

    def restore(
        files: list[str] | None, char: str | None, polarity: str, style: str, request: gr.Request, box: Box | None = None
    ) -> list[dict]:
        texts = texts_for(request)
        paths, char, style = [Path(file) for file in files or []], (char or "").strip(), style if style in STYLES else None
        if not paths or len(char) > 1:
            return show([texts["one_character"].format(char) if paths else texts["no_picture"]])
        lines = [texts["no_glyph"].format(char)] if restorer.read_guides(char) else []
        target = Path(tempfile.mkdtemp(dir=folder))
        written, sheets = [], []
        outcomes = restore_each(restorer, paths, char, polarity, box, texts)
        for path, name, restored in zip(paths, output_names(paths), outcomes, strict=True):
            if isinstance(restored, str):
                lines.append(restored)
                continue
            picture = restored.picture(style)
            if not restored.guide_fits:
                lines.append(texts["no_fit"].format(char, path.name))
            images.write_png(target / name, picture)
            written.append(target / name)
            if len(paths) > 1:
                sheets.append((preview(restored.compare(style)), path.stem))
        lines.append(texts["done"].format(len(written), len(paths)))
        if not written:
            return show(lines)
        if len(paths) > 1:
            return show(lines, sheets=sheets, summary=legend(texts), download=pack(target / "restored.zip", written))
        drawn = [(preview(one.picture(style)), str(number)) for number, one in enumerate(restored.hypotheses, 1)]
        return show(
            lines,
            **({"hypotheses": drawn} if len(drawn) > 1 else {}),
            pair=(preview(restored.prepared.shown), preview(picture)),
            changes=preview(restored.changes),
            place=place_of(restored, polarity, box is not None, texts),
            summary=summary(restored, texts),
            download=written[0],
        )

    def choice(name: str, *values: str) -> gr.Radio:
        return gr.Radio([(words(value), value) for value in values], value=values[0], label=words(name))

    with gr.Blocks(title="RestoreCAE-Zi", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as page:
        gr.HTML("<h1>RestoreCAE-Zi</h1>")
        gr.HTML(words("about"))
        with gr.Tab(words("characters")), gr.Row():
            with gr.Column(scale=1, min_width=320):
                files = gr.File(label=words("pictures"), file_count="multiple", height=200)
                char = gr.Textbox(label=words("char"), info=words("char_info"), max_lines=1, visible=restorer.takes_guide)
                polarity = choice("polarity", "auto", *POLARITIES)
                style = choice("style", "same", *STYLES)
                button = gr.Button(words("restore"), variant="primary")
            with gr.Column(scale=3, min_width=320):
                notes = gr.HTML(words("hint"), min_height=40)
                look = {"format": "png", "visible": False}
                single = {"height": 420, "buttons": ["fullscreen"], **look}
                with gr.Row():
                    results = {
                        "pair": gr.ImageSlider(label=words("pair"), **single),
                        "changes": gr.Image(label=words("changes"), elem_id="changes", **single),
                    }
                results["place"] = gr.HTML(
                    label=words("place"),
                    html_template=PLACE,
                    css_template=PLACE_CSS,
                    js_on_load=PLACE_JS,
                    elem_id="place",
                    visible=False,
                )
                several = {"object_fit": "contain", "height": "auto", "buttons": [], **look}
                readings = gr.Gallery(label=words("readings"), elem_id="readings", columns=MOST, **several, allow_preview=False)
                results["hypotheses"] = gr.Gallery(label=words("hypotheses"), elem_id="hypotheses", columns=HYPOTHESES, **several)
                results["sheets"] = gr.Gallery(label=words("sheets"), elem_id="sheets", columns=2, **several)
                results["summary"] = gr.HTML(visible=False)
                results["download"] = gr.DownloadButton(words("download"), variant="primary", visible=False)
        inputs, outputs = [files, char, polarity, style], [notes, *results.values()]
        shared = {"concurrency_limit": 1, "concurrency_id": "restore", "api_visibility": "private"}
        options = {"outputs": outputs, "show_progress_on": notes, **shared}
        placed = [files, results["place"], style]
        restored = button.click(restore, inputs, **options)
        again = results["place"].submit(restore_again, [files, char, *placed[1:]], **options)
        if reader:
            for event in (restored, again):
                event.then(read_picture, [files, char, *placed[1:]], readings, show_progress="hidden", **shared)
            readings.select(restore_as, placed, **{**options, "outputs": [char, *outputs]})
        with gr.Tab(words("pages")):
            app_pages.add_tab(restorer, folder, words, texts_for, read, shared, reader)
    page.i18n_instance = words  # gr.mount_gradio_app sets it too late
    page.has_launched = True  # gr.mount_gradio_app does not set it; without it, any file of the server is accepted as an upload
    return page.queue(api_open=False)


# --- the server ---------------------------------------------------------------------------------------------------------


def refuse_outgoing(event: str, _: tuple) -> None:
    """An audit hook, so that no library can circumvent it: gradio would fetch files by the URL in a request."""
    if event in OUTGOING:
        raise PermissionError("the server of the page opens no connections")


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI):
    """Refuses connections once the event loop runs; to start, it connects to itself on some systems."""
    sys.addaudithook(refuse_outgoing)
    yield


def with_policy(app):
    """Adds POLICY to all responses of an ASGI application: gradio's page refers to other servers, for fonts and more."""

    async def wrapped(scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY)]
            await send(message)

        await app(scope, receive, send_with_policy)

    return wrapped


def serve(page: gr.Blocks, listener: socket.socket) -> None:
    """Serves the page until the process is stopped."""
    app = gr.mount_gradio_app(
        FastAPI(lifespan=lifespan, openapi_url=None),
        page,
        path="/",
        theme=gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")),
        css=CSS,
        head=HEAD,
        footer_links=[],
        run_history=False,
        show_error=False,
        enable_monitoring=False,
        max_file_size="1gb",  # above MEGABYTES, since gradio's own message is in English only
    )
    config = uvicorn.Config(with_policy(app), loop="asyncio", log_level="warning", timeout_graceful_shutdown=1)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A page in the browser that restores pictures of degraded characters.")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE",
                        help=f"a run's checkpoint, a .safetensors or an .onnx file (default: weights/{WEIGHTS.name})")  # fmt: skip
    parser.add_argument("--port", type=number(int, 0, 65535), default=7860, help="default: 7860; 0 selects a free port")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on (default: 127.0.0.1, this computer only)")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Opens the port and serves the page until the process is stopped."""
    host = f"[{args.host}]" if ":" in args.host else args.host
    restorer = load_restorer(args.checkpoint)
    if restorer.takes_guide:
        restorer.read_guides("一")  # fail now if the guide is missing
    reader = load_reader(restorer) if restorer.draws else None
    listener = socket.create_server((args.host, args.port), family=socket.AF_INET6 if ":" in args.host else socket.AF_INET)
    if args.host not in ("127.0.0.1", "::1", "localhost"):
        print(f"warning: others on the network can reach the page at {host} and send pictures", file=sys.stderr)
    with listener, tempfile.TemporaryDirectory(prefix="restorecae-zi-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = make_page(restorer, folder, reader)
        print(f"http://{host}:{listener.getsockname()[1]} (Ctrl-C stops it)", flush=True)
        serve(page, listener)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status."""
    return script.run(run, parse_args(argv))


if __name__ == "__main__":
    script.as_script(main)
