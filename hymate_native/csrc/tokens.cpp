// The functions on channels and their tokens that Python calls; each returns a Status.
#include "attention.h"
#include "channel_memory.h"
#include "channel_statistics.h"
#include "channel_tokens.h"
#include "exports.h"
#include "fusion.h"
#include "occlusion.h"
#include "pooled_states.h"
#include "running_quantities.h"

using namespace hymate;

HYMATE_EXPORT int hymate_attention_forward(const AttentionArguments* a) { return attention_forward(*a); }
HYMATE_EXPORT int hymate_attention_backward(const AttentionArguments* a) { return attention_backward(*a); }
HYMATE_EXPORT int hymate_fusion_forward(const FusionArguments* f) { return fusion_forward(*f); }
HYMATE_EXPORT int hymate_fusion_backward(const FusionArguments* f) { return fusion_backward(*f); }
HYMATE_EXPORT int hymate_running_forward(const RunningArguments* r) { return running_forward(*r); }
HYMATE_EXPORT int hymate_running_backward(const RunningArguments* r) { return running_backward(*r); }
HYMATE_EXPORT int hymate_running_shares(const RunningArguments* r) { return running_shares(*r); }
HYMATE_EXPORT int hymate_pooled_forward(const PooledArguments* p) { return pooled_forward(*p); }
HYMATE_EXPORT int hymate_occlusion_forward(const OcclusionArguments* o) { return occlusion_forward(*o); }
HYMATE_EXPORT int hymate_tokens_forward(const TokenArguments* t) { return tokens_forward(*t); }
HYMATE_EXPORT int hymate_tokens_backward(const TokenArguments* t) { return tokens_backward(*t); }
HYMATE_EXPORT int hymate_channel_statistics(const StatisticArguments* s) { return channel_statistics(*s); }
HYMATE_EXPORT int hymate_remember_channels(const MemoryArguments* m) { return remember_channels(*m); }
HYMATE_EXPORT int hymate_recall_channels(const MemoryArguments* m) { return recall_channels(*m); }
