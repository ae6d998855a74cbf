//! [`on_device!`] runs code that is generic over its backend on the device that the arguments name. It is the one place
//! where a command meets both backends.

/// Runs `$body` with the engine that `$args` ask for, as `$engine`: `on_device!(args, |engine| use_it(&engine))`. Trouble
/// with snapshots is told on standard error, or to a log that is given.
macro_rules! on_device {
    ($args:expr, |$engine:ident| $body:expr) => {
        $crate::runtime::on_device!($args, Box::new($crate::io::output::tell), |$engine| $body)
    };
    ($args:expr, $log:expr, |$engine:ident| $body:expr) => {{
        let (args, log): (&$crate::runtime::options::EngineArgs, $crate::io::log::Log) = ($args, $log);
        args.announce(&log);
        match $crate::runtime::device::choose(args, &log)? {
            $crate::runtime::device::Chosen::Cpu(backend) => {
                let $engine = $crate::runtime::engine::Engine::load(backend, args, log)?;
                $body
            }
            $crate::runtime::device::Chosen::Cuda(backend, args) => {
                let $engine = $crate::runtime::engine::Engine::load(*backend, &args, log)?;
                $body
            }
        }
    }};
}
pub(crate) use on_device;
