"""The child process in which chat templates render; see ``localmoe.chat.template``."""
