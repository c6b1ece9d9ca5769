"""The exception tree: what the drawing promises, and errors that survive a worker process."""

import pickle

from diptych import errors


def test_every_error_is_a_diptych_error_and_one_is_a_failure_of_the_work():
    classes = [item for item in vars(errors).values() if isinstance(item, type) and issubclass(item, Exception)]
    assert all(issubclass(item, errors.DiptychError) for item in classes)
    assert [item.__name__ for item in classes if item.exit_code != 2] == ["PeerLostError", "NonFiniteError"]
    assert errors.NonFiniteError.exit_code == errors.PeerLostError.exit_code == 1
    drawn = errors.__doc__ or ""
    assert all(item.__name__ in drawn for item in classes)


def test_a_record_error_survives_the_trip_from_a_worker():
    error = pickle.loads(pickle.dumps(errors.RecordError("a.jpg", "cut short", "remove it")))
    assert (error.key, error.reason, str(error)) == ("a.jpg", "cut short", "a.jpg: cut short; remove it")


def test_the_message_is_one_line():
    assert errors.DiptychError("a\n  b").line == "a b"
