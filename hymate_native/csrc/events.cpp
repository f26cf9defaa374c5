// The functions on events that Python calls; each returns a Status.
#include "arrange.h"
#include "events.h"
#include "exports.h"

using namespace hymate;

HYMATE_EXPORT int hymate_embedding_forward(const EmbeddingArguments* e) { return embedding_forward(*e); }
HYMATE_EXPORT int hymate_embedding_backward(const EmbeddingArguments* e) { return embedding_backward(*e); }
HYMATE_EXPORT int hymate_projection_forward(const ProjectionArguments* p) { return projection_forward(*p); }
HYMATE_EXPORT int hymate_projection_backward(const ProjectionArguments* p) { return projection_backward(*p); }
HYMATE_EXPORT int hymate_arrange_events(const ArrangeArguments* a) { return arrange_events(*a); }
