"""Opens a page in Chromium, as Qt WebEngine has it, does what it is told, and prints what it found as JSON lines.

    python tests/browser.py page.html WIDTH HEIGHT < steps.json

Steps are [kind, ...]: ["js", expression], ["drag", x0, y0, x1, y1] or ["double", x, y] in shares of the element that
the page's `target` is, ["shot", path], ["pdf", path], ["resize", width, height]. Runs in a Python that has PySide6 with
WebEngine (pip install "PySide6-Addons<6.10"), which need not be the one that trains.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("QTWEBENGINE_DISABLE_SANDBOX", "1")  # containers have no user namespaces
os.environ.setdefault("QTWEBENGINE_CHROMIUM_FLAGS", "--no-sandbox --disable-gpu")

from PySide6.QtCore import QEventLoop, QPoint, Qt, QTimer, QUrl  # pyright: ignore[reportMissingImports]
from PySide6.QtTest import QTest  # pyright: ignore[reportMissingImports]
from PySide6.QtWebEngineCore import QWebEnginePage  # pyright: ignore[reportMissingImports]
from PySide6.QtWebEngineWidgets import QWebEngineView  # pyright: ignore[reportMissingImports]
from PySide6.QtWidgets import QApplication  # pyright: ignore[reportMissingImports]

WAIT = 300  # milliseconds in which a page has drawn what it was told


class Page(QWebEnginePage):
    """Says what its scripts complain of."""

    def javaScriptConsoleMessage(self, level: Any, message: str, line: int, source: str) -> None:
        print(json.dumps({"console": f"{message} (line {line})"}), flush=True)


def wait(milliseconds: int) -> None:
    loop = QEventLoop()
    QTimer.singleShot(milliseconds, loop.quit)
    loop.exec()


def ask(view: QWebEngineView, expression: str) -> Any:
    found: list[Any] = []
    loop = QEventLoop()
    view.page().runJavaScript(f"JSON.stringify({expression})", lambda value: (found.append(value), loop.quit()))
    QTimer.singleShot(10_000, loop.quit)
    loop.exec()
    return json.loads(found[0]) if found and found[0] else None


def place(view: QWebEngineView, x: float, y: float) -> QPoint:
    left, top, width, height = ask(
        view, "(r => [r.left, r.top, r.width, r.height])(window.target.getBoundingClientRect())"
    )
    return QPoint(round(left + x * width), round(top + y * height))


def step(view: QWebEngineView, kind: str, *given: Any) -> Any:
    left, none = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    if kind == "js":
        return ask(view, given[0])
    if kind == "drag":
        start, end = place(view, *given[:2]), place(view, *given[2:])
        inner = view.focusProxy()
        QTest.mousePress(inner, left, none, start)
        for share in (0.3, 0.7, 1.0):
            QTest.mouseMove(inner, start + (end - start) * share)
            wait(50)
        QTest.mouseRelease(inner, left, none, end)
    elif kind == "double":
        for _ in range(2):
            QTest.mouseClick(view.focusProxy(), left, none, place(view, *given))
            wait(50)
    elif kind == "shot":
        view.grab().save(given[0])
    elif kind == "resize":
        view.resize(*given)
    elif kind == "pdf":
        loop = QEventLoop()
        view.page().pdfPrintingFinished.connect(lambda *_: loop.quit())
        view.page().printToPdf(given[0])
        loop.exec()
    wait(WAIT)
    return None


def main() -> None:
    path, width, height = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    application = QApplication(sys.argv[:1])
    view, loop = QWebEngineView(), QEventLoop()
    view.setPage(Page(view))
    view.resize(width, height)
    view.loadFinished.connect(lambda _: loop.quit())
    view.load(QUrl.fromLocalFile(path))
    view.show()
    loop.exec()
    wait(2 * WAIT)
    for one in json.load(sys.stdin):
        print(json.dumps({"step": one[0], "found": step(view, *one)}), flush=True)
    view.setPage(None)
    application.quit()


if __name__ == "__main__":
    main()
    os._exit(0)  # Qt's threads are not waited for
