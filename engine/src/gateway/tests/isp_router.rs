//! A provider's router in front of us that speaks UPnP and nothing else (decision 20).
