#pragma once

namespace towline::tools {

/// Makes this process one that no accident of its start, and no stray signal, ends or confuses.
/// First of all in main(), before any descriptor is opened.
///
/// Standard input, output and error that were closed are /dev/null. Otherwise the next descriptor
/// that is opened becomes one of them: the event loop's own pipe was, and what a guest wrote to its
/// serial port was read from it as signals.
///
/// Signals that nobody sends on purpose, and whose default is to end the process, are ignored.
void prepare_process();

}  // namespace towline::tools
