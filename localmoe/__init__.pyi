from localmoe.api import LoadedModel as LoadedModel
from localmoe.api import Stream as Stream
from localmoe.api import load as load
from localmoe.api import result as result
from localmoe.chat.attachments import Attachment as Attachment
from localmoe.chat.conversation import AnswerDelta as AnswerDelta
from localmoe.chat.conversation import Conversation as Conversation
from localmoe.chat.conversation import ReasoningDelta as ReasoningDelta
from localmoe.chat.conversation import TurnDone as TurnDone
from localmoe.engine.events import PrefillProgress as PrefillProgress
from localmoe.errors import LocalmoeError as LocalmoeError
from localmoe.planning.plan import Wishes as Wishes

__version__: str
