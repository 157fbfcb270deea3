"""The page, in a browser (skipped unless the system has Chromium) and through its HTTP interface."""

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs requirements-app.txt")
import httpx

import app
import app_pages
from restoration.pipeline import Restorer
from tests.pictures import network, tiny_checkpoint
from tests.test_layout import draw_page

ROOT = Path(app.__file__).parent
CHROMIUM = shutil.which("chromium")
FLAGS = ["no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-component-update"]
FLAGS = [f"--{flag}" for flag in (*FLAGS, "disable-sync", "disable-quic")]
# The app, recording every connection that it tries to open from its first line on.
WATCHED = """
import runpy, sys
record = open(sys.argv.pop(1), "a", buffering=1)
outgoing = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
sys.addaudithook(lambda event, args: event in outgoing and print(event, *args, file=record))
sys.argv = sys.argv[1:]
sys.path.insert(0, ".")
runpy.run_path("app.py", run_name="__main__")
"""


class Server(NamedTuple):
    url: str
    log: Path  # its standard error
    connections: Path  # connections that it tried to open


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The app in its own process, with an untrained network."""
    folder = tmp_path_factory.mktemp("server")
    checkpoint = tiny_checkpoint(folder / "tiny.pth", img_size=32, in_chans=4)
    (folder / "tmp").mkdir()
    arguments = [sys.executable, "-c", WATCHED, folder / "connections", "app.py", "--port", "0", "--checkpoint", checkpoint]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(folder / "tmp")}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line + (folder / "log").read_text()
        yield Server(line.split()[0], folder / "log", folder / "connections")
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert not list((folder / "tmp").glob("restorecae-zi-*")), "uploads were not deleted"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
    if not CHROMIUM:
        pytest.skip("browser tests need Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(server, browser):
    """Opens the page in a browser with a locale. Fails on requests to other servers, policy violations and server logs."""
    contexts, outside, refused = [], [], []

    def open_page(locale: str):
        context = browser.new_context(locale=locale, accept_downloads=True)
        contexts.append(context)
        context.expose_function("record_refused", lambda url: refused.append(url))
        context.add_init_script("addEventListener('securitypolicyviolation', event => record_refused(event.blockedURI))")
        page = context.new_page()
        page.outside, page.refused = outside, refused
        page.on("request", lambda request: request.url.startswith((server.url, "data:", "blob:")) or outside.append(request.url))
        page.goto(server.url)
        page.locator("input[type=file]").first.wait_for(state="attached")
        return page

    before = server.log.read_text()
    yield open_page
    for context in contexts:
        context.close()
    assert not outside and not refused
    assert server.log.read_text() == before


def upload(page, *paths: Path) -> None:
    page.locator("input[type=file]").first.set_input_files(paths)
    page.get_by_label(paths[-1].name).wait_for()


def restore(page, text: str, button: str = "Restore") -> None:
    """Clicks the button and waits for the text."""
    page.get_by_role("button", name=button, exact=True).click()
    page.get_by_text(text).wait_for()
    page.wait_for_timeout(500)  # gradio loses a click that comes while it closes the stream of the readings


def download(page, folder: Path, button: str = "Download") -> Path:
    with page.expect_download() as info:
        page.get_by_text(button, exact=True).click()
    info.value.save_as(folder / info.value.suggested_filename)
    return folder / info.value.suggested_filename


def picture(path: Path, width: int = 60, height: int = 45) -> Path:
    """Writes a picture of a few dark strokes at 300 pixels per inch."""
    x = np.full((height, width), 230, dtype=np.uint8)
    x[10:14, 8:-8] = x[8:-8, 20:25] = 30
    Image.fromarray(x).save(path, dpi=(300, 300))
    return path


def page_picture(path: Path) -> Path:
    """Writes a page of 6 columns of 7 dark characters."""
    Image.fromarray(((1 - draw_page(6, 7, noise=0.03)[0]) * 255).astype(np.uint8)).save(path)
    return path


# --- in a browser -------------------------------------------------------------------------------------------------------


def test_one_picture_is_restored_and_downloaded(visit, tmp_path):
    page = visit("en-US")
    upload(page, picture(tmp_path / "佛.png"))
    page.get_by_label("Character (optional)").fill("佛")
    page.get_by_label("ink: dark on light").check()
    restore(page, "Restored: 1 of 1.")
    assert re.search(r"Strokes dark: (certain to |in doubt \()\d+%", page.locator("#place").inner_text())
    for name in ("Degraded | restored", "What changed", "doubtful"):
        page.get_by_text(name).wait_for()
    assert re.search(r"Confidence \d\.\d\d, dark strokes, guide: 佛", page.locator("body").inner_text())
    page.wait_for_function("[...document.images].filter(i => i.naturalWidth == 60 && i.naturalHeight == 45).length >= 3")
    page.get_by_text("What could have been written, the likeliest first").wait_for()
    page.wait_for_function("[...document.querySelectorAll('#hypotheses img')].filter(i => i.naturalWidth == 60).length == 3")

    file = download(page, tmp_path / "out")
    assert file.name == "佛_restored.png"
    with Image.open(file) as restored:
        assert (restored.format, restored.mode, restored.size) == ("PNG", "L", (60, 45))
        assert restored.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_a_reading_that_is_chosen_becomes_the_guide(visit, tmp_path):
    page = visit("en-US")
    upload(page, picture(tmp_path / "a.png"))
    restore(page, "Restored: 1 of 1.")
    cards = page.locator("#readings .thumbnail-item")
    cards.nth(4).wait_for()
    assert cards.count() == 5
    char, share = re.fullmatch(r"(.) (\d+)%", cards.nth(1).inner_text().strip()).groups()
    assert int(share) <= 100
    cards.nth(1).click()
    page.get_by_text(f"guide: {char}").wait_for()
    assert page.get_by_label("Character (optional)").input_value() == char and cards.count() == 5
    page.get_by_label("Character (optional)").fill("佛")
    restore(page, "Restored: 1 of 1.")
    page.get_by_text("guide: 佛").wait_for()
    cards.first.wait_for(state="hidden")


def test_the_box_is_dragged_and_the_polarity_is_flipped(visit, tmp_path):
    page = visit("en-US")
    upload(page, picture(tmp_path / "a.png", 400, 300))
    restore(page, "Restored: 1 of 1.")
    box, stage = page.locator("#place .box"), page.locator("#place img")

    def left_top_width() -> list[float]:
        inner, outer = box.bounding_box(), stage.bounding_box()
        scale = 400 / outer["width"]
        return [(inner["x"] - outer["x"]) * scale, (inner["y"] - outer["y"]) * scale, inner["width"] * scale]

    def drag(x: float, y: float, across: float, down: float) -> None:
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + across, y + down, steps=4)
        page.mouse.up()

    page.get_by_role("button", name="Strokes are bright").click()
    page.get_by_text("Strokes bright, as you chose.").wait_for()
    page.get_by_role("button", name="Strokes are dark").click()
    page.get_by_text("Strokes dark, as you chose.").wait_for()

    page.wait_for_timeout(1500)
    before, outer = left_top_width(), stage.bounding_box()
    scale = 400 / outer["width"]
    stage.scroll_into_view_if_needed()
    inner = stage.bounding_box()
    with page.expect_response(re.compile("queue/join")):
        drag(inner["x"] + inner["width"] / 2, inner["y"] + inner["height"] / 2, 30 / scale, 20 / scale)
    page.wait_for_timeout(1500)
    np.testing.assert_allclose(left_top_width(), [before[0] + 30, before[1] + 20, before[2]], atol=2)
    handle = box.locator("[data-corner='3']")
    handle.scroll_into_view_if_needed()
    corner = handle.bounding_box()
    with page.expect_response(re.compile("queue/join")):
        drag(corner["x"] + corner["width"] - 2, corner["y"] + corner["height"] - 2, -200 / scale, -200 / scale)
    page.wait_for_timeout(1500)
    np.testing.assert_allclose(left_top_width(), [before[0] + 30, before[1] + 20, 200], atol=12)
    before = left_top_width()
    box.focus()
    with page.expect_response(re.compile("queue/join")):
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("-")
    page.wait_for_timeout(1500)
    after = left_top_width()
    assert after[2] < before[2] - 1 and after[0] < before[0]
    assert page.get_by_text("Strokes dark, as you chose.").is_visible()


def test_a_page_is_found_corrected_and_restored(visit, tmp_path):
    page = visit("en-US")
    page.get_by_role("tab", name="Whole pages").click()
    page.locator("#page_file input[type=file]").set_input_files(page_picture(tmp_path / "stele.png"))
    page.get_by_text("42 characters in 6 columns, strokes dark.").wait_for()
    boxes = page.locator("#boxes rect")
    assert boxes.count() == 42

    def place() -> dict:
        return page.locator("#boxes rect.on").bounding_box()

    boxes.first.scroll_into_view_if_needed()
    start = boxes.first.bounding_box()
    page.mouse.move(start["x"] + start["width"] / 4, start["y"] + start["height"] / 4)
    page.mouse.down()
    page.mouse.move(start["x"] + start["width"] / 4 + 12, start["y"] + start["height"] / 4 + 9, steps=3)
    page.mouse.up()
    assert place()["x"] - start["x"] == pytest.approx(12, abs=2) and place()["y"] - start["y"] == pytest.approx(9, abs=2)
    page.keyboard.press("+")
    assert place()["width"] > start["width"] + 0.5
    page.keyboard.press("PageDown")
    page.keyboard.press("Delete")
    assert boxes.count() == 41
    page.get_by_role("button", name="Add", exact=True).click()
    assert boxes.count() == 42 and place()["width"] == pytest.approx(start["width"], rel=0.2)
    page.get_by_role("button", name="Remove", exact=True).click()

    page.get_by_role("button", name="Restore the page").click()
    page.get_by_text("Restored: 41 characters.").wait_for()
    assert page.locator("#boxes img.after").is_visible() and page.locator("#text textarea").input_value().count("\n") == 6
    page.get_by_role("button", name="Before / after").click()
    assert page.locator("#boxes img.before").is_visible() and boxes.count() == 41
    wide = page.locator("#boxes svg").bounding_box()["width"]
    page.get_by_role("button", name="Zoom in").click()
    assert page.locator("#boxes svg").bounding_box()["width"] > 1.3 * wide

    with zipfile.ZipFile(download(page, tmp_path / "out")) as archive:
        assert sorted(archive.namelist()) == ["stele.xml", "stele_layout.json", "stele_restored.png", "stele_text.txt"]
        layout = json.loads(archive.read("stele_layout.json"))
        assert sorted(len(column["characters"]) for column in layout["columns"]) == [6, 7, 7, 7, 7, 7]
        with archive.open("stele_restored.png") as file, Image.open(file) as restored:
            assert restored.size == Image.open(tmp_path / "stele.png").size

    unguided = page.locator("#boxes img.after").get_attribute("src")
    page.get_by_label("Let readings guide").check()
    page.get_by_role("button", name="Restore the page").click()
    page.wait_for_function("before => document.querySelector('#boxes img.after').src != before", arg=unguided)
    page.get_by_text("Restored: 41 characters.").wait_for()


def test_both_passes_over_a_page_count_as_progress():
    shown = []
    assert list(app_pages.watched("ab", shown.append, 0, 4)) + list(app_pages.watched("cd", shown.append, 2, 4)) == list("abcd")
    assert shown == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_picture_that_is_no_page_is_one_line(visit, tmp_path):
    page = visit("zh-CN")
    page.get_by_role("tab", name="整页").click()
    Image.new("L", (200, 150), 230).save(tmp_path / "empty.png")
    page.locator("#page_file input[type=file]").set_input_files(tmp_path / "empty.png")
    page.get_by_text("未找到成行的汉字").wait_for()
    assert page.locator("#boxes rect").count() == 0


def test_several_pictures_become_a_gallery_and_a_zip(visit, tmp_path):
    page = visit("zh-CN")
    corrupt = tmp_path / "坏.png"
    corrupt.write_text("no picture")
    twice = picture(tmp_path / "a.png")
    upload(page, twice, twice, picture(tmp_path / "a.tif"), corrupt, picture(tmp_path / "b.png", 90, 50))
    restore(page, "已修复 4 张，共 5 张。", "修复")
    assert page.get_by_text("坏.png：文件损坏，或不是图片").is_visible()
    page.wait_for_function("[...document.querySelectorAll('#sheets img')].filter(i => i.naturalWidth > 0).length == 4")
    assert not page.locator("#hypotheses").is_visible()

    file = download(page, tmp_path / "out", "下载")
    assert file.name == "restored.zip"
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        sizes = {name: Image.open(archive.open(name)).size for name in archive.namelist()}
    names = ("a_restored.png", "a_restored_2.png", "a_restored_3.png")
    assert sizes == {**dict.fromkeys(names, (60, 45)), "b_restored.png": (90, 50)}


@pytest.mark.parametrize(
    "locale, lines",
    [
        ("en-US", ["坏.png: corrupt or not a picture", "large.tif: larger than 50 MB", "bomb.png: more than 128 million pixels"]),
        ("zh-CN", ["坏.png：文件损坏，或不是图片", "large.tif：超过 50 MB", "bomb.png：超过 12800 万像素"]),
    ],
)
def test_files_that_cannot_be_restored_are_listed(visit, tmp_path, locale, lines):
    page = visit(locale)
    corrupt, large, bomb = tmp_path / "坏.png", tmp_path / "large.tif", tmp_path / "bomb.png"
    corrupt.write_bytes(picture(tmp_path / "whole.png").read_bytes()[:100])
    with open(large, "wb") as file:
        file.truncate(51 << 20)
    Image.new("1", (12_000, 11_000)).save(bomb)
    upload(page, large, bomb, corrupt)
    restore(page, lines[0], "Restore" if locale == "en-US" else "修复")
    text = page.locator("body").inner_text()
    assert all(line in text for line in lines)
    assert "Traceback" not in text and "Error" not in text
    assert not page.get_by_text("Download" if locale == "en-US" else "下载", exact=True).is_visible()


@pytest.mark.parametrize("locale, language", [("en-US", "en"), ("zh-CN", "zh"), ("zh-HK", "en")])  # gradio has no zh-HK
def test_the_page_is_in_the_language_of_the_browser(visit, tmp_path, locale, language):
    page, texts = visit(locale), app.TEXTS[language]
    upload(page, picture(tmp_path / "一.png"))
    restore(page, texts["done"].format(1, 1), texts["restore"])
    page.get_by_text(texts["doubtful"]).wait_for()
    cards = page.locator("#readings .thumbnail-item")
    cards.first.wait_for()
    text = page.locator("body").inner_text()
    assert page.evaluate("document.documentElement.lang") == locale
    if language == "zh":
        assert set(re.findall("[A-Za-z]+", text)) <= {"RestoreCAE", "Zi", "png", "B", "KB"}
    else:
        for caption in cards.all_inner_texts():
            text = text.replace(caption, "", 1)
        assert set(re.findall("[\u4e00-\u9fff]", text)) == {"一"}


def test_the_character_field_is_validated_and_escaped(visit, tmp_path):
    page = visit("en-US")
    restore(page, "Choose a picture first.")
    upload(page, picture(tmp_path / "a.png"))
    page.get_by_label("Character (optional)").fill("<b>${1}")
    restore(page, "One character at most, not “<b>${1}”.")
    page.get_by_label("Character (optional)").fill("☃")
    restore(page, "No standard glyph for ☃: restored without a guide.")
    assert page.get_by_text("guide: none").is_visible()


def test_the_policy_blocks_other_servers(visit):
    page = visit("en-US")
    urls = ["http://127.0.0.1:9/", "http://a.invalid/a.png"]
    page.evaluate("url => fetch(url).catch(() => 0)", urls[0])
    page.evaluate("url => new Promise(end => Object.assign(new Image(), {src: url, onerror: end}))", urls[1])
    assert sorted(page.refused) == urls
    page.outside.clear()
    page.refused.clear()


# --- without a browser --------------------------------------------------------------------------------------------------


def call(server: Server, file: dict, language: str = "en", place: dict | None = None) -> dict:
    """Does what the button does, with a file as gradio describes it, or a correction of the place. Returns the last message."""
    with httpx.Client(base_url=f"{server.url}/gradio_api", timeout=30, trust_env=False) as client:
        file = {"meta": {"_type": "gradio.FileData"}, **file}
        # gradio sends None for the character if its field is hidden
        body = {
            "data": [[file], None, place or "auto", "same"],
            "fn_index": int(place is not None),
            "session_hash": os.urandom(8).hex(),
        }
        client.post("/queue/join", json=body, headers={"accept-language": language}).raise_for_status()
        with client.stream("GET", "/queue/data", params={"session_hash": body["session_hash"]}) as events:
            for line in events.iter_lines():
                if "process_completed" in line:
                    return json.loads(line.removeprefix("data: "))
    raise AssertionError("the queue closed without a result")


def test_the_start_opens_no_connections(server):
    assert server.connections.read_text() == ""


def test_the_server_listens_on_one_address_only(server):
    port = int(server.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", port), timeout=5)


def test_an_upload_is_restored_over_http(server, tmp_path):
    files = {"files": ("一.png", picture(tmp_path / "一.png").read_bytes())}
    [path] = httpx.post(f"{server.url}/gradio_api/upload", files=files, trust_env=False).json()
    notes, pair, *_, download = call(server, {"path": path, "orig_name": "一.png"}, "zh-TW,en;q=0.5")["output"]["data"]
    assert "已修复 1 张" in notes["value"] and len(pair["value"]) == 2
    assert download["value"]["path"].endswith("一_restored.png")


def test_the_box_and_the_polarity_are_corrected_over_http(server, tmp_path):
    files = {"files": ("a.png", picture(tmp_path / "a.png").read_bytes())}
    [path] = httpx.post(f"{server.url}/gradio_api/upload", files=files, trust_env=False).json()
    found = call(server, {"path": path, "orig_name": "a.png"})["output"]["data"][3]["value"]
    assert found["size"] == [60, 45] and not found["moved"] and found["polarity"] == "auto" and found["other"] == "bright"
    change = {**found, "box": [5, 8, 30], "moved": True, "polarity": "bright"}
    place = call(server, {"path": path, "orig_name": "a.png"}, place=change)["output"]["data"][3]["value"]
    assert place["box"] == [5, 8, 30] and place["other"] == "dark" and "as you chose" in place["text"]
    for box in ([0, 0, 0], ["a", 0, 9], [1, 2], [900, 0, 9]):
        result = call(server, {"path": path, "orig_name": "a.png"}, place={**change, "box": box})
        assert not result["success"] or "data" not in result["output"] or not result["output"]["data"][3].get("value")


@pytest.fixture
def outside():
    """(URL of another server, list of the requests that it gets)."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{other.server_port}/a.png", requests
        other.shutdown()


def test_the_server_never_fetches_a_url(server, outside):
    other, requests = outside
    # gradio trusts huggingface.co, so only the audit hook stops this one
    for url in (other, other.replace("127.0.0.1", "localhost"), "https://huggingface.co/a.png"):
        result = call(server, {"path": url, "url": url})
        assert result["success"] is False and "data" not in result["output"]
        for route in ("file=", "file/", "proxy="):
            assert httpx.get(f"{server.url}/gradio_api/{route}{url}", trust_env=False).status_code in (400, 403)
    assert not requests
    assert "huggingface.co" in server.connections.read_text()  # gradio tried it
    assert "the server of the page opens no connections" in server.log.read_text()


def test_other_files_of_the_server_are_not_served(server):
    assert httpx.get(f"{server.url}/gradio_api/file={ROOT / 'README.md'}", trust_env=False).status_code == 403
    assert call(server, {"path": str(ROOT / "README.md")})["success"] is False


def test_edited_boxes_become_a_layout_in_reading_order():
    value = {"polarity": "dark", "skew": 2.0, "direction": "rtl", "boxes": [[10, 60, 20], [60, 12, 20], [12, 10, 20], [58, 62, 21]]}
    layout = app_pages.layout_of(value, (100, 100))
    assert [[one[:3] for one in column] for column in layout.columns] == [
        [(60, 12, 20), (58, 62, 21)],
        [(12, 10, 20), (10, 60, 20)],
    ]
    lines = app_pages.layout_of({**value, "direction": "horizontal"}, (100, 100))
    assert [[one[:2] for one in line] for line in lines.columns] == [[(12, 10), (60, 12)], [(10, 60), (58, 62)]]
    for wrong in ({"boxes": []}, {"boxes": [[0, 0, 1]]}, {"boxes": [[1e9, 0, 9]]}, {"polarity": "grey"}, {"direction": "up"}):
        with pytest.raises(ValueError):
            app_pages.layout_of({**value, **wrong}, (100, 100))


def test_a_picture_that_cannot_be_prepared_does_not_stop_the_others(tmp_path):
    good = picture(tmp_path / "good.png")
    Image.fromarray(np.full((40, 40), np.nan, np.float32)).save(tmp_path / "nan.tif")
    restorer = Restorer(network(lambda x: x[:, 0]), {"img_size": 32, "in_chans": 2})
    first, error, last = app.restore_each(restorer, [good, tmp_path / "nan.tif", good], "", "auto", None, app.TEXTS["en"])
    assert error == "nan.tif: corrupt or not a picture" and (first.square == last.square).all()


def test_page_pictures_of_16_bits_are_shown_as_they_are():
    grey = np.tile(np.linspace(0, 65535, 100).astype(np.uint16), (50, 1))
    file = io.BytesIO(base64.b64decode(app_pages.data_url(Image.fromarray(grey), 40).partition(",")[2]))
    with Image.open(file) as shown:
        assert shown.size == (40, 20)
        assert np.abs(np.asarray(shown.convert("L"))[10] - np.linspace(0, 255, 40)).max() < 10


def test_output_names_are_unique():
    paths = [Path("x/a.png"), Path("y/a.jpg"), Path("z/b.c.png")]
    assert app.output_names(paths) == ["a_restored.png", "a_restored_2.png", "b.c_restored.png"]


def test_start_errors_are_one_line(tmp_path, monkeypatch, capsys):
    assert app.main(["--checkpoint", str(tmp_path / "none.pth")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(app, "load_restorer", lambda checkpoint: app.Restorer(None, {"img_size": 32, "in_chans": 1}))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert app.main(["--port", str(taken.getsockname()[1])]) == 1
    assert re.fullmatch("error: .*in use.*\n", capsys.readouterr().err)


def test_serving_on_the_network_prints_a_warning(monkeypatch, capsys):
    monkeypatch.setattr(app, "load_restorer", lambda checkpoint: app.Restorer(None, {"img_size": 32, "in_chans": 1}))
    monkeypatch.setattr(app, "serve", lambda page, listener: None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    assert app.main(["--port", "0"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("http://127.0.0.1:") and not printed.err
    assert app.main(["--port", "0", "--host", "0.0.0.0"]) == 0
    assert "others on the network can reach the page" in capsys.readouterr().err
