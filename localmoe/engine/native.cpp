// placeholder replaced by the engine work
extern "C" void * PyInit__native(void) { return 0; }
