//! A test hook: storage that fails on purpose, by the variable `BLOCKREP_FAULTS`.
//!
//! `FILE=PLAN`, several separated by `;`, where FILE is `image`, `journal` or `meta` and PLAN is
//! what [`FaultPlan`] reads: `image=sync:3=EIO;journal=write:5+=ENOSPC`. The plan counts the
//! operations of every such file by itself (each journal segment is a file), from the moment the
//! daemon serves. Never set outside tests; a daemon that has it says so in its log.

use crate::reactor::{FaultPlan, OpenedFile};

/// Name of the variable.
pub(super) const FAULTS_VARIABLE: &str = "BLOCKREP_FAULTS";

/// What is to fail.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    /// Of images.
    pub(super) image: Option<FaultPlan>,
    /// Of every segment of a journal.
    pub(super) journal: Option<FaultPlan>,
    /// Of metadata, volume and group.
    pub(super) meta: Option<FaultPlan>,
}

impl Faults {
    /// From the environment; nothing fails where the variable is not set.
    ///
    /// # Errors
    /// What in it was not understood, in one line.
    pub(super) fn from_env() -> Result<Self, String> {
        let Some(text) = std::env::var_os(FAULTS_VARIABLE) else {
            return Ok(Self::default());
        };
        let text = text.to_string_lossy();
        let faults = Self::parse(&text).map_err(|why| format!("{FAULTS_VARIABLE}: {why}"))?;
        tracing::warn!("faults are planted into storage by {FAULTS_VARIABLE}: {text}");
        Ok(faults)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut faults = Self::default();
        for part in text.split(';').filter(|part| !part.is_empty()) {
            let (file, plan) = part
                .split_once('=')
                .ok_or_else(|| format!("\"{part}\" is not of the form FILE=PLAN"))?;
            let slot = match file {
                "image" => &mut faults.image,
                "journal" => &mut faults.journal,
                "meta" => &mut faults.meta,
                _ => return Err(format!("\"{file}\" is none of image, journal, meta")),
            };
            *slot = Some(plan.parse().map_err(|error| format!("{error}"))?);
        }
        Ok(faults)
    }
}

/// Plants a plan into a file that the reactor gets.
pub(super) fn plant(plan: Option<&FaultPlan>, mut file: OpenedFile) -> OpenedFile {
    file.options.faults = plan.cloned();
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fault test whose plan went to no file, or to the wrong one, would pass for nothing.
    #[test]
    fn plans_reach_the_file_they_name() {
        let faults = Faults::parse("image=sync:3=EIO;journal=write:5+=ENOSPC").unwrap();
        assert_eq!(faults.image, Some("sync:3=EIO".parse().unwrap()));
        assert_eq!(faults.journal, Some("write:5+=ENOSPC".parse().unwrap()));
        assert_eq!(faults.meta, None);
        for (text, wanted) in [
            ("sync:3", "not of the form FILE=PLAN"),
            ("disk=sync:3=EIO", "none of image, journal, meta"),
            ("image=sync=EIO", "not of the form op:nth=action"),
        ] {
            let error = Faults::parse(text).unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }
}
