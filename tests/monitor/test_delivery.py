"""Notifications against a receiver of ours: good, refusing, slow, and none."""

import json
import pickle
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ntk_monitor import StallAlert
from ntk_monitor.monitor.alerts import delivery
from ntk_monitor.monitor.alerts.delivery import Alert, Delivery, Notifier

pytest.importorskip("apprise")


class Receiver(ThreadingHTTPServer):
    """Keeps what is posted to it, and when; answers with `status`, once it `may_answer`."""

    daemon_threads = True

    def __init__(self) -> None:
        self.bodies: list[str] = []
        self.times: list[float] = []
        self.status, self.may_answer = 200, threading.Event()
        self.may_answer.set()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"json://127.0.0.1:{self.server_address[1]}/hook"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        server.times.append(time.monotonic())
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.may_answer.wait(10)
        server.bodies.append(json.loads(body)["message"])
        self.send_response(server.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.may_answer.set()
        server.shutdown()
        thread.join()


ALERT = Alert(10, 1, "stalled", "warning", "core", "mode 1 is stalled")


def until(condition: Any, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


def test_warnings_are_delivered_and_information_is_not(receiver: Receiver) -> None:
    channel = Delivery(None, [receiver.url], 0.0)
    channel.send(ALERT, loudly=True)
    channel.send(ALERT, loudly=False)
    channel.close()
    assert receiver.bodies == ["mode 1 is stalled"]


def test_what_comes_within_the_interval_goes_together(receiver: Receiver) -> None:
    notifier = Notifier([receiver.url], interval=30.0)
    notifier.send("first")
    until(lambda: receiver.bodies)
    notifier.send("second")
    notifier.send("third")
    time.sleep(0.05)
    assert receiver.bodies == ["first"]
    notifier.close()  # the end of the training does not wait for the interval
    assert len(receiver.bodies) == 2
    assert "second" in receiver.bodies[1]
    assert "third" in receiver.bodies[1]


def test_the_interval_is_kept(receiver: Receiver) -> None:
    notifier = Notifier([receiver.url], interval=0.3)
    notifier.send("first")
    until(lambda: receiver.bodies)
    notifier.send("second")
    until(lambda: len(receiver.bodies) == 2)
    assert receiver.times[1] - receiver.times[0] >= 0.3
    notifier.close()


def test_a_slow_receiver_holds_nothing_up(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.may_answer.clear()
    monkeypatch.setattr(delivery, "FAREWELL", 0.1)
    notifier = Notifier([receiver.url], 0.0)
    notifier.send("slow")
    assert not receiver.bodies
    with pytest.warns(UserWarning, match=r"notification was not through after 0\.1 s"):
        notifier.close()
    assert not receiver.bodies
    receiver.may_answer.set()
    until(lambda: receiver.bodies)


def test_one_that_refuses_is_told_of_and_given_up(receiver: Receiver) -> None:
    receiver.status = 500
    notifier = Notifier([receiver.url], 0.0)

    def send() -> None:
        for i in range(3):
            notifier.send(f"message {i}")
            until(lambda wanted=i + 1: len(receiver.bodies) >= wanted)
        notifier.close()

    with pytest.warns(UserWarning, match="a notification failed") as caught:
        send()
    assert "switched off" in str(caught[-1].message)
    notifier.send("a fourth")
    assert notifier._thread is None
    notifier.close()
    assert len(receiver.bodies) == 3


def test_nobody_there(receiver: Receiver) -> None:
    url = receiver.url
    receiver.shutdown()
    receiver.server_close()
    notifier = Notifier([url], 0.0)
    notifier.send("hello")
    with pytest.warns(UserWarning, match="was not delivered: A Connection error"):
        notifier.close()


def test_a_wrong_address_is_an_error_at_once_with_the_reason_and_no_secret() -> None:
    with pytest.raises(ValueError, match=r"begins with 'slack:'.*Slack") as raised:
        StallAlert(notify=["slack://secret"])
    assert "secret" not in str(raised.value)
    with pytest.raises(ValueError, match="notify") as raised:
        StallAlert(notify=["twilio://SECRETsid:token@12345678901/12345678902"])
    assert "SECRETsid" not in str(raised.value)
    with pytest.raises(ValueError, match="notify must hold addresses"):
        StallAlert(notify=["nonsense"])


def test_threads_end_and_the_channel_can_be_spawned(receiver: Receiver) -> None:
    notifier = Notifier([receiver.url], 0.0)
    for text in ("one", "two"):  # two trainings
        notifier.send(text)
        notifier.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "ntk-alerts"]
    again = pickle.loads(pickle.dumps(notifier))
    again.send("three")
    again.close()
    assert receiver.bodies == ["one", "two", "three"]


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "apprise", None)
    with pytest.raises(ModuleNotFoundError, match=r"ntk-monitor\[notify\]"):
        StallAlert(notify=["json://localhost"])
