from ui.pages.state import View


def show(view: View) -> None: ...
