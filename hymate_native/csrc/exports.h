// How functions are handed to Python: by their plain names, everything else stays inside the library.
#pragma once

#define HYMATE_EXPORT extern "C" __attribute__((visibility("default")))
