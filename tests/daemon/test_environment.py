"""A child's environment is an allow-list, and never holds the machine's key."""

from cloudagent_daemon.runs.environment import child_environment


def test_a_child_gets_the_usual_what_its_cli_reads_and_what_the_agent_adds() -> None:
    daemon = {
        "HOME": "/home/u",
        "LC_ALL": "C",
        "https_proxy": "http://proxy",
        "ANTHROPIC_BASE_URL": "http://model",
        "AWS_SECRET_ACCESS_KEY": "x",
        "LD_PRELOAD": "x.so",
    }
    made = child_environment(
        daemon,
        inherits=("ANTHROPIC_*",),
        agent={"PROJECT": "shop", "HOME": "/home/agent"},
        command={"DISABLE_AUTOUPDATER": "1"},
        secrets=(),
    )
    assert made == {
        "HOME": "/home/agent",
        "LC_ALL": "C",
        "https_proxy": "http://proxy",
        "ANTHROPIC_BASE_URL": "http://model",
        "PROJECT": "shop",
        "DISABLE_AUTOUPDATER": "1",
    }


def test_the_driver_has_the_last_word() -> None:
    made = child_environment(
        {"A": "daemon"}, inherits=("A",), agent={"A": "agent"}, command={"A": "x"}, secrets=()
    )
    assert made == {"A": "x"}


def test_no_value_holds_a_secret_under_whatever_name() -> None:
    made = child_environment(
        {"TERM": "sk_machine_abc", "HOME": "/home"},
        inherits=("CLOUDAGENT_*",),
        agent={"X": "Bearer sk_machine_abc", "CLOUDAGENT_API_KEY": "other", "Y": "fine"},
        command={},
        secrets=("sk_machine_abc", ""),
    )
    assert made == {"HOME": "/home", "Y": "fine"}
