//! What is known of programs: whose memory they pin, which processes they are, what they may reach.

pub(crate) mod accounts;
pub(crate) mod enqcmd;
pub(crate) mod followers;
pub(crate) mod memory;
pub(crate) mod permission;
pub(crate) mod pidfd;
pub(crate) mod processes;
pub(crate) mod status;
