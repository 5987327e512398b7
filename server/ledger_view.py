"""`jouleserve conserve`: the node process's books, as a table."""

from __future__ import annotations

import httpx
from rich.console import Console
from rich.table import Table

from server.addresses import joined
from server.node.figures import NodeAddress

ROWS = ("attributed", "idle", "overhead", "other", "pending")
TOLERATED_ERROR = 0.001


def print_conservation(console: Console, node: NodeAddress, since: str | None) -> int:
    """Print measured joules beside their parts, since a mark that an earlier call printed, or since ever.

    Returns 0 if they agree within 0.1 %, 1 if not, if nobody answers, or if the mark is none of these books.
    """
    url = f"http://{joined(node.host, node.port)}"
    try:
        given = {} if since is None else {"since": since}
        with httpx.Client(transport=httpx.HTTPTransport(uds=node.socket), timeout=10) as client:
            answer = client.get(f"{url}/conservation", params=given)
            if answer.status_code == httpx.codes.BAD_REQUEST:
                console.print(answer.json()["error"], soft_wrap=True)
                return 1
            books = answer.raise_for_status().json()
    except httpx.HTTPError as error:
        where = node.socket or url
        console.print(f"no books at {where} ({error}); is the server up? start it with `jouleserve up`", soft_wrap=True)
        return 1
    measured = float(books["measured_joules"])
    table = Table("owed by", "joules", "share", title=f"energy books (source: {'+'.join(books['sources'])})")
    for row in ROWS:
        joules = float(books[f"{row}_joules"])
        table.add_row(row, f"{joules:.3f}", f"{joules / measured:.1%}" if measured else "")
    table.add_row("sum", f"{sum(float(books[f'{row}_joules']) for row in ROWS):.3f}", "")
    table.add_row("meter", f"{measured:.3f}", "")
    console.print(table)
    ratio = float(books["error_ratio"])
    console.print(f"conservation error {ratio:.4%} (tolerated {TOLERATED_ERROR:.1%})")
    console.print(f"the books from here on: jouleserve conserve --since {books['mark']}", soft_wrap=True)
    return 0 if ratio <= TOLERATED_ERROR else 1
