"""The review loop without a page: what people say about traces, who is handed what, and nothing said is lost.

    log = EventLog(workbench.reviews)
    reviews = Reviews(log)
    reviews.open(task_of(workbench, "homecam, week 1", TraceFilter(flip="broken"), labels=labels), by="lead")
    item = reviews.next_item("homecam, week 1", "ann")
    reviews.judge("homecam, week 1", "ann", item.trace_id, {"label": "normal", "verdict": "right"})  # on disk now

`tasks` says which traces are asked about, in which order; `events` what people do, and the fold over it; `log` is the
file of events; `reviews` hands out items and takes answers. What they tell is in `quality`, files in and out in
`import_export`, the way back into training in `feedback`; `commands` is their command line. Agreement is counted in
`agreement`, from `Reviews.ratings`; `label_errors` doubts labels.

Never imports torch.
"""

from deepintuit_analysis.review.events import Event, Kind, State, fold
from deepintuit_analysis.review.log import EventLog, read_events
from deepintuit_analysis.review.reviews import Item, Reviews
from deepintuit_analysis.review.tasks import ORDERS, QUESTIONS, VERDICTS, ReviewTask, plan, task_of

__all__ = [
    "ORDERS",
    "QUESTIONS",
    "VERDICTS",
    "Event",
    "EventLog",
    "Item",
    "Kind",
    "Reviews",
    "State",
    "ReviewTask",
    "fold",
    "plan",
    "read_events",
    "task_of",
]
