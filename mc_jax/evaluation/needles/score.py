"""RULER's scoring rule, `string_match_all`, for one reference."""


def recalled(answer: str, prediction: str) -> bool:
    """Whether a prediction contains the answer, whatever the case of their letters.

    RULER first strips the prediction and puts a newline in place of control characters. An answer
    has neither, so that does not change whether it is found.
    """
    return answer.lower() in prediction.lower()
