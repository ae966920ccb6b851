"""A real browser without a screen, for tests of what people see."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

T = TypeVar("T")
DRIVER = "/usr/bin/chromedriver"
QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1600",
)


class Browser:
    """A browser's window, in which everything may take a while to appear."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Go to a page."""
        self.driver.get(url)

    def text(self) -> str:
        """Return what can be read."""
        return str(self.driver.find_element(By.TAG_NAME, "body").text)

    def await_text(self, *texts: str, seconds: float = 240) -> str:
        """Wait until the page shows all of these; return all that it shows."""

        def found() -> str | None:
            page = self.text()
            return page if all(text in page for text in texts) else None

        return self.await_(found, f"{texts}", seconds)

    def click(self, xpath: str) -> None:
        """Click what is there, once it can be clicked."""

        def done() -> bool:
            self.find(xpath).click()
            return True

        self.await_(done, f"a click on {xpath}")

    def fill(self, xpath: str, text: str) -> None:
        """Replace what stands in a field."""

        def done() -> bool:
            field = self.find(xpath)
            field.clear()
            field.send_keys(text)
            return field.get_attribute("value") == text

        self.await_(done, f"{text!r} in {xpath}")

    def select(self, xpath: str, option: str) -> None:
        """Choose an option of a list."""

        def done() -> bool:
            choice = Select(self.find(xpath))
            choice.select_by_visible_text(option)
            return choice.first_selected_option.text == option

        self.await_(done, f"{option!r} in {xpath}")

    def find(self, xpath: str) -> WebElement:
        """Return the first element that can be seen."""
        for element in self.driver.find_elements(By.XPATH, xpath):
            if element.is_displayed():
                return element
        raise WebDriverException(f"there is no {xpath}")

    def soon(self, look: Callable[[], bool], seconds: float = 10) -> bool:
        """Return whether something comes to be so."""
        end = time.monotonic() + seconds
        while not (found := look()) and time.monotonic() < end:
            time.sleep(0.2)
        return found

    def await_(self, look: Callable[[], T | None], what: str, seconds: float = 240) -> T:
        """Wait until something is so and return it; where it does not, say what the page shows."""
        end = time.monotonic() + seconds
        while True:
            try:
                if found := look():
                    return found
                problem = ""
            except WebDriverException as error:  # not there yet, or redrawn meanwhile
                problem = f" ({error.msg})"
            if time.monotonic() > end:
                raise AssertionError(
                    f"not within {seconds} s: {what}{problem}; the page shows: {self.text()}"
                )
            time.sleep(0.2)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start a browser with an empty profile; end it, whatever happens."""
    options = webdriver.ChromeOptions()
    for flag in (*QUIET, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
