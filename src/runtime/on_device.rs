//! [`on_device!`] runs code that is generic over the backend on the selected device. It is the only dispatch between
//! the CPU and the CUDA backend. Next: [`super::device`].

/// Loads the engine that `$args` select and runs `$body` with it as `$engine`: `on_device!(args, |engine|
/// use_it(&engine))`. Warnings are written to standard error or to the given log.
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
