"""The report's page in a real browser: it draws, toggles, sorts and prints, and runs nothing that it was not given."""

import re

import pytest
from fake_studies import fake_study

from mla_experiments.report.study import write_report


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = fake_study(tmp_path_factory.mktemp("studies"))
    write_report(folder)
    return (folder / "report.html").as_uri()


def show(browser, page, width=1280, dark=False):
    """Open a page on a screen of this width, on light or dark paper, unfold it, wait until all its charts are drawn."""
    from selenium.webdriver.support.wait import WebDriverWait

    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(page)
    browser.execute_script("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    empty = "return [...document.querySelectorAll('.chart')].filter(place => !place.querySelector('.main-svg')).length"
    WebDriverWait(browser, 60).until(lambda _: browser.execute_script(empty) == 0)


def luminance(color):
    """Relative luminance of a colour such as #0072b2 or rgb(22, 22, 22) (WCAG 2.2)."""
    parts = [int(color[i : i + 2], 16) for i in (1, 3, 5)] if color[0] == "#" else map(int, re.findall(r"\d+", color))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in parts)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_it_draws_within_its_width_in_colours_that_stand_out(page, browser, width, dark):
    show(browser, page, width, dark)
    assert browser.execute_script("return document.querySelectorAll('.chart .main-svg').length") >= 7
    assert browser.execute_script("return window.hacked === undefined")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width, "nothing sticks out"
    paper = luminance(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert (paper < 0.1) == dark
    lines = "return [...document.querySelectorAll('.js-line')].map(line => getComputedStyle(line).stroke)"
    drawn = set(browser.execute_script(lines))
    assert len(drawn) >= 4
    owners = browser.execute_script(
        "return page.colors[matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light']"
    )
    for color in owners:
        light, heavy = sorted((luminance(color) + 0.05, paper + 0.05), reverse=True)
        assert light / heavy >= 3, color
    table = "return [...document.querySelector('table').rows].map(row => row.cells.length)"
    assert set(browser.execute_script(table)) == {4}
    wide = """return [...document.querySelectorAll('*')].filter(box => box.scrollWidth > box.clientWidth + 1
        && ['auto', 'scroll'].includes(getComputedStyle(box).overflowX)).length"""
    assert browser.execute_script(wide) == 0, "nothing is scrolled sideways"


def test_a_click_sorts_up_and_then_down(page, browser):
    show(browser, page)
    find = """const head = [...document.querySelectorAll('th')].find(th => th.textContent === %r);
              const rows = [...head.closest('table').tBodies[0].rows];"""
    cells = find + "return rows.map(row => row.cells[head.cellIndex].textContent)"
    click = find + "head.querySelector('button').click()"
    cache, difference = "cache bytes/token", "difference, bits/byte"
    browser.execute_script(click % cache)
    assert browser.execute_script(cells % cache) == ["512", "1,024", "2,048", "4,096"]
    browser.execute_script(click % cache)
    assert browser.execute_script(cells % cache) == ["4,096", "2,048", "1,024", "512"]
    browser.execute_script(click % difference)
    shown = [float(text) for text in browser.execute_script(cells % difference)]
    assert shown == sorted(shown) and shown[0] < 0 < shown[-1]


def test_what_is_looked_up_is_folded_away_and_unfolded_on_paper(page, browser):
    browser.get(page)
    folds = "return [...document.querySelectorAll('details')].map(fold => fold.open)"
    assert set(browser.execute_script(folds)) == {False}
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    assert set(browser.execute_script(folds)) == {True}
    browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert set(browser.execute_script(folds)) == {False}


def test_a_click_in_a_key_hides_a_variant_in_every_chart_and_shows_it_again(page, browser):
    show(browser, page)
    visible = """return [...document.querySelectorAll('.chart')].map(
        place => place.data.filter(trace => trace.meta === 1).map(trace => trace.visible)).flat()"""
    pressed = "return [...document.querySelectorAll('[data-owner=\"1\"]')].map(b => b.getAttribute('aria-pressed'))"
    assert set(browser.execute_script(visible)) == {True}
    browser.execute_script("document.querySelector('[data-owner=\"1\"]').click()")
    assert set(browser.execute_script(visible)) == {False} and set(browser.execute_script(pressed)) == {"false"}
    browser.execute_script("document.querySelectorAll('[data-owner=\"1\"]')[1].click()")
    assert set(browser.execute_script(visible)) == {True} and set(browser.execute_script(pressed)) == {"true"}


def test_axes_become_logarithmic_and_linear(page, browser):
    show(browser, page)
    axis = "return document.getElementById('chart-loss-tokens').layout.xaxis.type"
    button = "document.querySelector('[data-chart=\"loss-tokens\"][data-axis=xaxis]').click()"
    for kind in ("log", "linear"):
        browser.execute_script(button)
        assert browser.execute_script(axis) == kind


def test_pointing_at_a_line_names_it_with_its_value_and_interval(page, browser):
    from selenium.webdriver import ActionChains

    show(browser, page)
    point = browser.find_elements("css selector", "#chart-front-cache .scatterlayer .point")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(browser).move_to_element(point).perform()
    said = browser.execute_script("return document.querySelector('#chart-front-cache .hoverlayer').textContent")
    assert "mha" in said and "±" in said


def test_printed_from_a_dark_screen_it_is_dark_on_white(page, browser):
    show(browser, page, dark=True)
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    ink = "return getComputedStyle(document.querySelector('.chart text')).fill"
    assert luminance(browser.execute_script(ink)) < 0.1
    widths = "return [...document.querySelectorAll('.chart .main-svg')].map(svg => svg.clientWidth)"
    assert max(browser.execute_script(widths)) <= 330, "two fit side by side on A4"
    browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert luminance(browser.execute_script(ink)) > 0.5


def test_a_script_that_gets_into_the_page_does_not_run(page, started):
    started.get(page)
    started.get_log("browser")
    started.execute_script(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 1\">');"
        "const script = document.createElement('script'); script.textContent = 'window.hacked = 1';"
        "document.body.append(script)"
    )
    assert started.execute_script("return window.hacked === undefined")
    refused = [entry["message"] for entry in started.get_log("browser") if entry["level"] == "SEVERE"]
    assert any("Content Security Policy" in message for message in refused)
