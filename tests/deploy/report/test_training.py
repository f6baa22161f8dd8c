"""A run's training in a sentence and in curves."""

from report_pages import Page, epoch, whole

from deploy.report.page import report_html


def test_training_is_told_in_a_sentence_and_drawn() -> None:
    html = report_html(whole(), metrics=[epoch(1), epoch(2), epoch(3, train_loss=0.125)])
    text = Page(html).text
    assert "3 epochs in 6 s of training steps; 700 images per second in the median epoch; 256 MiB of memory" in text
    assert "best test accuracy 93.00 % (epoch 3)" in text
    assert "train 0.125" in text
    assert html.count('class="curve train"') == 2


def test_a_network_that_was_trained_elsewhere_has_no_epochs() -> None:
    text = Page(report_html(whole(), metrics=[{"epoch": 0, "step": 0, "test_loss": 1.5, "test_accuracy": 0.25}])).text
    assert "The network was trained elsewhere; its test accuracy as it was given is 25.00 %." in text
    assert "training steps" not in text


def test_numbers_that_are_none_leave_a_gap_and_are_named() -> None:
    metrics = [epoch(1), epoch(2, train_loss="NaN"), epoch(3, test_loss=float("inf")), epoch(4, test_accuracy=None)]
    text = Page(report_html(whole(), metrics=metrics)).text
    assert "epoch 2: train_loss is NaN; epoch 3: test_loss is inf; epoch 4: test_accuracy is missing." in text
    assert "best test accuracy 93.00 % (epoch 3)" in text
