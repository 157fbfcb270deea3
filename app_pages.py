"""The part of the page in the browser that restores whole pages: characters' boxes are shown, corrected, restored."""

import base64
import html
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import gradio as gr
from PIL import Image

from restoration import layout_files
from restoration.drawing import DEFAULT, MEAN
from restoration.layout import DIRECTIONS, Character, Layout, arrange
from restoration.page import Canvas, Page, find_page, restore_page
from restoration.pipeline import POLARITIES, Restorer
from restoration.reading import Reader
from util import images

SHOWN = 2400  # maximum edge of a page in the browser, in pixels; downloads have the full size
MOST = 5000  # boxes on a page
SMALLEST = 4  # edge of a box in pixels
PROGRESS = gr.Progress()  # gradio passes the running event's to an argument with this default

WORDS = {
    "page_about": (
        "Find the characters of a page, correct their boxes if need be, and restore them all.",
        "找出整页的汉字，必要时修正方框，再一并修复。",
    ),
    "page": ("Page", "整页图片"),
    "direction": ("Reading order", "阅读顺序"),
    "rtl": ("columns from the right", "竖排，自右向左"),
    "ltr": ("columns from the left", "竖排，自左向右"),
    "horizontal": ("lines from the top", "横排，自上而下"),
    "find": ("Find the characters", "查找汉字"),
    "restore_page": ("Restore the page", "修复整页"),
    "page_hint": ("The page appears here, with a box around each character.", "整页在此显示，每个汉字有一方框。"),
    "boxes": ("Boxes of the characters", "汉字方框"),
    "boxes_info": (
        "Drag a box to move it, its lower right corner to resize it; double-click to add one, Delete removes it. By keyboard: Page "
        "Up and Page Down select, arrow keys move, + and − resize.",
        "拖动方框可移动，拖右下角可改大小；双击空处添加，按 Delete 删除。键盘：Page Up、Page Down 选择，方向键移动，+、− 改大小。",
    ),
    "add": ("Add", "添加"),
    "remove": ("Remove", "删除"),
    "flip_page": ("Before / after", "修复前 / 后"),
    "larger": ("Zoom in", "放大"),
    "smaller": ("Zoom out", "缩小"),
    "found": ("{} characters in {} columns, strokes {}.", "共 {} 字、{} 行，笔画{}。"),
    "restored_page": ("Restored: {} characters.", "已修复 {} 字。"),
    "guided": ("Let readings guide, this page's own specimens first", "以识读结果引导，优先用本页字样"),
    "text": ("Read as: 〔〕 in doubt, □ lost", "识读：〔〕存疑，□ 残缺"),
    "no_columns": (
        "No columns of characters were found. For a single character use the other tab.",
        "未找到成行的汉字。若只有一个字，请用另一栏。",
    ),
    "bad_boxes": ("Some boxes lie outside of the page; remove them.", "有方框在页面之外，请删除。"),
    "no_boxes": ("There is no box on the page.", "页面上没有方框。"),
}
SHOWN_WORDS = ("add", "remove", "larger", "smaller", "flip_page", "restore_page", "boxes", "boxes_info")

# A page and its boxes; see `value_of`. Edits change the boxes' attributes only, so that a page of many stays fluent.
TEMPLATE = """${value ? `<div class="tools">
<button type="button" data-do="add">${value.words.add}</button><button type="button" data-do="remove">${value.words.remove}</button>
<button type="button" data-do="smaller" aria-label="${value.words.smaller}">−</button>
<button type="button" data-do="larger" aria-label="${value.words.larger}">+</button>
<button type="button" data-do="flip_page" ${value.after ? '' : 'disabled'}>${value.words.flip_page}</button>
<button type="button" data-do="restore_page">${value.words.restore_page}</button></div>
<div class="sheet" tabindex="0" role="application" aria-label="${value.words.boxes}. ${value.words.boxes_info}">
<div class="paper ${value.after ? 'flipped' : ''}"><img class="before" src="${value.before}" alt="" draggable="false">
${value.after ? `<img class="after" src="${value.after}" alt="" draggable="false">` : ''}
<svg viewBox="0 0 ${value.size[0]} ${value.size[1]}">${value.boxes.map(box =>
`<rect x="${box[0]}" y="${box[1]}" width="${box[2]}" height="${box[2]}"/>`).join('')}</svg></div></div>
<p>${value.words.boxes_info}</p>` : ''}"""
CSS = """
.tools {display: flex; gap: .4em; flex-wrap: wrap; margin-bottom: .4em}
.tools button {border: 1px solid currentColor; border-radius: 4px; padding: .1em .7em; cursor: pointer}
.tools [data-do="restore_page"] {border-color: #e8590c; background: #e8590c; color: #fff; margin-left: auto}
.tools button:disabled {opacity: .4; cursor: default}
.sheet {overflow: auto; max-height: 75vh; border: 1px solid #8886}
.sheet:focus-visible {outline: 3px solid #1c7ed6}
.paper {position: relative; width: 100%; user-select: none}
.paper img {display: block; width: 100%; max-width: none} .paper .after {display: none}
.paper.flipped .before {display: none} .paper.flipped .after {display: block}
.paper svg {position: absolute; inset: 0; width: 100%; height: 100%; touch-action: pan-x pan-y}
rect {fill: transparent; stroke: #e8590c; stroke-width: 1.5px; vector-effect: non-scaling-stroke; cursor: move}
.paper.flipped rect {stroke-opacity: .25}
rect.on {fill: #1c7ed622; stroke: #1c7ed6; stroke-width: 3px; stroke-opacity: 1 !important; touch-action: none}
"""
SCRIPT = """
const CORNER = .3, SMALLEST = 4;
let drag = null, zoom = 100;
const svg = () => element.querySelector('svg');
const boxes = () => [...svg().querySelectorAll('rect')];
const chosen = () => svg().querySelector('rect.on');
const get = rect => ['x', 'y', 'width'].map(name => Number(rect.getAttribute(name)));
const put = (rect, [left, top, edge]) => {
  edge = Math.max(SMALLEST, edge);
  const values = {x: left, y: top, width: edge, height: edge};
  for (const [name, value] of Object.entries(values)) rect.setAttribute(name, Math.round(value));
};
const choose = rect => {chosen()?.classList.remove('on'); rect?.classList.add('on')};
const point = event => {
  const area = svg().getBoundingClientRect(), scale = svg().viewBox.baseVal.width / area.width;
  return [(event.clientX - area.left) * scale, (event.clientY - area.top) * scale];
};
// Only now are the edited boxes sent: to assign the value draws everything again.
const restore = () => {
  props.value = {...props.value, boxes: boxes().map(get)};
  setTimeout(() => trigger('submit'));
};
const add = (x, y) => {
  const edges = boxes().map(rect => get(rect)[2]).sort((a, b) => a - b);
  const edge = edges.length ? edges[edges.length >> 1] : svg().viewBox.baseVal.width / 20;
  const rect = svg().appendChild(document.createElementNS('http://www.w3.org/2000/svg', 'rect'));
  put(rect, [x - edge / 2, y - edge / 2, edge]);
  choose(rect);
};
const resize = () => {element.querySelector('.paper').style.width = `${zoom}%`};
element.addEventListener('pointerdown', event => {
  const rect = event.target.closest('rect');
  if (!event.target.closest('svg')) return;
  element.querySelector('.sheet').focus({preventScroll: true});
  choose(rect);
  if (!rect) return;
  event.preventDefault();
  rect.setPointerCapture(event.pointerId);
  const [x, y] = point(event), box = get(rect);
  const corner = box[0] + box[2] - x < CORNER * box[2] && box[1] + box[2] - y < CORNER * box[2];
  drag = {rect, box, x, y, corner};
});
element.addEventListener('pointermove', event => {
  if (!drag) return;
  const [x, y] = point(event), across = x - drag.x, down = y - drag.y, [left, top, edge] = drag.box;
  put(drag.rect, drag.corner ? [left, top, edge + Math.max(across, down)] : [left + across, top + down, edge]);
});
for (const end of ['pointerup', 'pointercancel']) element.addEventListener(end, () => {drag = null});
element.addEventListener('dblclick', event => {
  if (event.target.closest('svg') && !event.target.closest('rect')) add(...point(event));
});
element.addEventListener('click', event => {
  const button = event.target.closest('[data-do]');
  if (!button) return;
  const sheet = element.querySelector('.sheet');
  if (button.dataset.do === 'restore_page') {
    restore();
  } else if (button.dataset.do === 'add') {
    const area = sheet.getBoundingClientRect();
    add(...point({clientX: area.left + area.width / 2, clientY: area.top + area.height / 2}));
  } else if (button.dataset.do === 'remove') {
    chosen()?.remove();
  } else if (button.dataset.do === 'flip_page') {
    element.querySelector('.paper').classList.toggle('flipped');
  } else {
    zoom = Math.min(800, Math.max(25, zoom * (button.dataset.do === 'larger' ? 1.4 : 1 / 1.4)));
    resize();
  }
});
element.addEventListener('keydown', event => {
  if (!event.target.closest('.sheet')) return;
  const rect = chosen(), all = boxes();
  const move = {ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0],
    '+': [-.5, -.5, 1], '=': [-.5, -.5, 1], '-': [.5, .5, -1]}[event.key];
  const step = {PageDown: 1, PageUp: -1}[event.key];
  if (step && all.length) {
    choose(all[(all.indexOf(rect) + step + all.length) % all.length]);
    chosen().scrollIntoView({block: 'nearest', inline: 'nearest'});
  } else if (rect && (event.key === 'Delete' || event.key === 'Backspace')) {
    rect.remove();
  } else if (rect && move) {
    const unit = Math.max(1, Math.round(get(rect)[2] / 30));
    put(rect, get(rect).map((value, i) => value + unit * move[i]));
  } else {
    return;
  }
  event.preventDefault();
});
watch('value', resize);
"""


def data_url(picture: Image.Image, most: int = SHOWN) -> str:
    """A copy of the picture, at most `most` pixels wide and high, as a JPEG in a URL."""
    file = io.BytesIO()
    images.small_copy(picture, most, most).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def value_of(picture: Image.Image, layout: Layout, texts: dict[str, str]) -> dict:
    """The value of TEMPLATE: page, size and boxes (left, top, edge) in its pixels. The browser sends it back with edited boxes."""
    return {
        "before": data_url(picture),
        "after": None,
        "size": picture.size,
        "boxes": [(one.left, one.top, one.edge) for one in layout.characters],
        **{name: getattr(layout, name) for name in ("polarity", "skew", "direction")},
        "words": {name: texts[name] for name in SHOWN_WORDS},
    }


def layout_of(value: dict, size: tuple[int, int]) -> Layout:
    """The layout that was edited in the browser. size: (height, width). Raises ValueError for what is none."""
    boxes = [Character(*map(round, map(float, box[:3]))) for box in value["boxes"][: MOST + 1]]
    if not 0 < len(boxes) <= MOST or any(one.edge < SMALLEST or max(map(abs, one[:3])) > 1 << 16 for one in boxes):
        raise ValueError("no boxes of a page")
    if value["polarity"] not in POLARITIES or value["direction"] not in DIRECTIONS or not abs(float(value["skew"])) < 90:
        raise ValueError("no layout of a page")
    return arrange(Layout(size, [boxes], value["polarity"], float(value["skew"]), value["direction"]))


def download(folder: str, stem: str, restored: Image.Image, page: Page, name: str) -> str:
    """Writes the restored page, its text and its layout, as JSON and PAGE XML, to a zip file in the folder; returns its path."""
    target = Path(tempfile.mkdtemp(dir=folder)) / f"{stem}_restored.zip"
    picture = io.BytesIO()
    images.save_png(restored, picture)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{stem}_restored.png", picture.getvalue(), zipfile.ZIP_STORED)
        archive.writestr(f"{stem}_layout.json", json.dumps(layout_files.to_json(page.layout), ensure_ascii=False, indent=1))
        archive.writestr(f"{stem}.xml", layout_files.to_xml(page.layout, name))
        archive.writestr(f"{stem}_text.txt", layout_files.to_text(page.layout))
    return str(target)


def watched(items: Iterable, progress: gr.Progress, before: int, total: int) -> Iterator:
    """The same items; how many are done, with those `before` them, is shown as a share of the total."""
    for done, item in enumerate(items, before + 1):
        progress((done, total))
        yield item


def add_tab(
    restorer: Restorer, folder: str, words: Callable, texts_for: Callable, read: Callable, options: dict, reader: Reader | None
) -> None:
    """Adds the components of the page mode to the blocks that are open.

    Args:
        folder: where downloads are written.
        words: texts in the browser's language, for components; texts_for: likewise, for a request.
        read: (path, texts) → the picture, or the line of its error.
        options: of the events.
        reader: reads the characters, if there is one.
    """

    def find(file: str | None, polarity: str, direction: str, request: gr.Request) -> list[dict]:
        texts = texts_for(request)
        picture = read(Path(file), texts) if file else texts["no_picture"]
        if isinstance(picture, str):
            return show(picture)
        direction = direction if direction in DIRECTIONS else DIRECTIONS[0]
        try:
            layout = find_page(picture, polarity if polarity in POLARITIES else "auto", direction).layout
        except ValueError:
            return show(texts["no_columns"])
        line = texts["found"].format(len(layout.characters), len(layout.columns), texts[layout.polarity])
        return show(line, value_of(picture, layout, texts))

    def restore(
        file: str | None, value: dict | None, guided: bool, request: gr.Request, progress: gr.Progress = PROGRESS
    ) -> list[dict]:
        texts = texts_for(request)
        picture = read(Path(file), texts) if file else texts["no_picture"]
        if isinstance(picture, str) or not value or not value["boxes"]:
            return show(picture if isinstance(picture, str) else texts["no_boxes"], value)
        layout = layout_of(value, picture.size[::-1])
        try:
            page = find_page(picture, layout=layout)
        except ValueError:
            return show(texts["bad_boxes"], value)
        canvas, count, found = Canvas(page), len(layout.characters), []
        guided = bool(guided and reader)
        total = count * (1 + guided)
        specimens = None
        if guided:
            means = restore_page(page, restorer, MEAN)
            specimens = reader.specimens(one for _, _, one in watched(means, progress, 0, total))
        characters = restore_page(page, restorer, DEFAULT, reader=reader, guided=guided, specimens=specimens)
        for character, part, one in watched(characters, progress, total - count, total):
            found.append(character)
            canvas.put(part, one)
        page, restored, path = Page(page.bright, layout.only(found)), canvas.picture(), Path(file)
        value = {**value_of(picture, layout, texts), "after": data_url(restored)}
        file = download(folder, path.stem, restored, page, path.name)
        return show(texts["restored_page"].format(count), value, layout_files.to_text(page.layout) if reader else None, file)

    def show(line: str, value: dict | None = None, text: str | None = None, file: str | None = None) -> list[dict]:
        parts = (gr.update(value=shown, visible=shown is not None) for shown in (value, text, file))
        return [gr.update(value=f"<div>{html.escape(line)}</div>"), *parts]

    gr.HTML(words("page_about"))
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            file = gr.File(label=words("page"), height=140, elem_id="page_file")
            polarity, direction = (
                gr.Radio([(words(value), value) for value in values], value=values[0], label=words(name))
                for name, values in (("polarity", ("auto", *POLARITIES)), ("direction", DIRECTIONS))
            )
            guided = gr.Checkbox(label=words("guided"), visible=reader is not None)
            button = gr.Button(words("find"))
        with gr.Column(scale=3, min_width=320):
            notes = gr.HTML(words("page_hint"), min_height=40)
            boxes = gr.HTML(
                label=words("boxes"), html_template=TEMPLATE, css_template=CSS, js_on_load=SCRIPT, elem_id="boxes", visible=False
            )
            text = gr.Textbox(label=words("text"), lines=4, interactive=False, buttons=["copy"], elem_id="text", visible=False)
            result = gr.DownloadButton(words("download"), variant="primary", visible=False)
    options = {**options, "outputs": [notes, boxes, text, result], "show_progress_on": notes}
    for event in (button.click, file.upload):
        event(find, [file, polarity, direction], **options)
    boxes.submit(restore, [file, boxes, guided], **options)
